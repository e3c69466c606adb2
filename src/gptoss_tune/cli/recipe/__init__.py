"""Commands on a recipe and its data, before anything runs; none of them imports torch."""
