"""LoRA, low-rank adaptation."""
