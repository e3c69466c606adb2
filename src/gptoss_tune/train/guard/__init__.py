"""What watches a run: gradients that are there, weights that stay, losses that make sense."""
