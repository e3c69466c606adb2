"""Adapter and base to a merged checkpoint: streamed, exact, resumable."""
