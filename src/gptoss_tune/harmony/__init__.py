"""Conversations -> token ids and loss weights, exactly as the model sees them when served."""
