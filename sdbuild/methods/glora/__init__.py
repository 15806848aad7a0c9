"""GLoRA, generalised low-rank adaptation."""
