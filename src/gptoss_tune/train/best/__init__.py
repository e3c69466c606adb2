"""The best checkpoint and early stopping: what evaluations say of the weights, and what follows.

- ``standing``: which evaluation is the best so far, and how many were no better; plain numbers.
- ``selection``: the observer that feeds it with the run's figures and keeps it in checkpoints.
- ``measured``, ``policies``: figures that the run's files cannot give, refused before weights.
- ``compared``: what of it a continuation is held to.

What is published at the end is the business of ``train/finish.py``.
"""
