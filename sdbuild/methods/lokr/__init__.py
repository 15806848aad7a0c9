"""LoKr, low-rank Kronecker products."""
