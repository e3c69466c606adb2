"""What a run measures of itself, and where each figure goes."""
