"""Rows -> columns of token ids and weights: rendered in parallel, kept, packed and counted."""
