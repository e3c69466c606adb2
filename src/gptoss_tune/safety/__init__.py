"""Whether tuning made a model less safe: base and tuned model side by side, on the same questions.

``policy`` is what a judge applies, ``judge`` asks one behind an address, ``judging`` asks for many,
``agreement`` compares two. ``questions`` is what is asked, ``hints`` plants a hint,
``contradictions`` and ``languages`` read the chain of thought. ``paired`` decides what is a
regression, ``assess`` makes the report, and ``evaluator`` does all of it in training and on a
finished model.
"""
