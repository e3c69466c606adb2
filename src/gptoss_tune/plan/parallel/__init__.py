"""What a plan adds where several GPUs share each row: ``context``, memory and what travels."""
