"""Pivotal tuning: textual inversion, and a LoRA on it."""
