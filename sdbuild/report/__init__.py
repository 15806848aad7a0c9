"""What a project's builds were, and how they differ: history, differences, provenance. Light."""
