"""What a model answers, graded; whether its answers are harmony; how far it is from its base."""
