"""Hypernetworks: small networks before keys and values of cross-attention."""
