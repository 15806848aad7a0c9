"""(IA)³, scaled activations."""
