"""Objective, optimizers, schedules, checkpoints and the loop; sees protocols, never a concrete family or method."""
