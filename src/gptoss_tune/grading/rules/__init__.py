"""The grader ``rules``: instructions that a program can check, such as ``at most 50 words``.

``measures``: words, sentences, paragraphs and marks of a text. ``counted``: rules about how many.
``stated``: rules that hold or do not. ``grader``: a list of them, strict or loose.

Named after the instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911) where they ask the same,
but written for this package; where they count differently the rule says so.
"""
