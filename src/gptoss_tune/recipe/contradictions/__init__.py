"""Contradictions between settings: what one is, and the rules of ``distributed``."""
