"""Rules that a program can check, such as ``at most 50 words``; ``instructions`` grades by them.

``measures``: words, sentences, paragraphs and marks of a text. ``counted``: rules about how many.
``stated``: rules that hold or do not.

Named after the instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911) where they ask the same,
but written for this package; where they count differently the rule says so.
"""
