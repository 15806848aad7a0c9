"""LoHa, low-rank Hadamard products."""
