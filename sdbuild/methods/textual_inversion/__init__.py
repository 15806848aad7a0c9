"""Textual inversion: new words whose vectors are learned."""
