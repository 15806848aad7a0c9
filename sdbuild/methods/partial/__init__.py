"""Partial fine-tune: some of the base's own layers."""
