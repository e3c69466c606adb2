"""What a recipe's evaluations measure, by name, before anything is measured.

- ``sources``: the held-out sources and the names that their figures carry.
- ``evaluation``: every figure that an evaluation of a recipe gives, and which way is better.
"""
