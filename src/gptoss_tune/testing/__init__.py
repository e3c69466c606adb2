"""A tiny gpt-oss in the released layout, and what a model really holds: for trying and testing."""
