"""Episodes that the model being trained plays: samplers, turns, and the samples they become."""
