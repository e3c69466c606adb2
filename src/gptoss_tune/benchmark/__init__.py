"""Benchmarks: the same tasks put to several subjects, in process or served, in one table.

``subject``: what every subject is, and what it gives back.
"""
