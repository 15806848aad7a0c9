"""sdbuild: `make` for Stable Diffusion adapters."""

__version__ = "0.1.0"
