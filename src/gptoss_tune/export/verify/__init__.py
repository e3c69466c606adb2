"""Is a merged folder the model that was trained: by its weights, its logits, its server."""
