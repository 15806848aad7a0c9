"""Programs that make what sdbuild ships."""
