"""OFT, orthogonal fine-tuning."""
