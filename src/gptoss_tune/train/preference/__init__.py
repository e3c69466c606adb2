"""Preference tuning: dpo, ipo, simpo, orpo and kto on packed experts, with one model and adapter.

``objectives`` holds the formulas, ``answers`` what they are computed from, ``loss`` turns them into
one pass with signed weights, ``reference`` computes log-probabilities once, ``collator`` makes
batches, ``meter`` the figures, and ``examples`` shows pairs before and after. The trainer that
joins them is ``train/preference_trainer.py``.
"""
