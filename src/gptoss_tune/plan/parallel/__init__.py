"""What a plan adds where several GPUs share each row: memory, what travels, and ways out."""
