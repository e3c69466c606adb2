"""Verdicts on answers: graders of texts, numbers, calls and code, without torch.

``answer``: what was given, channels apart. ``grader``: what every grader is, and the time that one
evaluation may take. ``rows``: the keys of a row that say how it is graded. Benchmarks, evaluations
in training and rewards share them.
"""
