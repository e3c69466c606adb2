"""What a served model needs: memory of each GPU, and an instance that has it."""
