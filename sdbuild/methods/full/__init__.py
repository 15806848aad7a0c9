"""Full fine-tune: all weights of the base."""
