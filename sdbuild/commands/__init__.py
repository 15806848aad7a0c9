"""The commands of `sdbuild`, by subject; each parses, calls and renders, and knows nothing else."""
