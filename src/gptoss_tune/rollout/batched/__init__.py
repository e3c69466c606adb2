"""The sampler `batched`: transformers' continuous batching on our attention and experts."""
