"""Verdicts on answers: graders of texts, numbers, calls and code, without torch.

``answer``: what was given, channels apart. ``grader``: what every grader is, and the time that one
evaluation may take. ``rows``: the keys of a row that say how it is graded. Then one file a grader:
``text`` (exact, pattern), ``number``, ``maths``, ``choice``, ``instructions`` (rules), ``calls``,
``schema`` (json_schema), ``policy``, ``code_grader`` (code, in the sandbox of ``code``). They share
``reading``, ``rules`` and ``bounded``, the process that can be killed. Benchmarks, evaluations in
training and rewards use them all.
"""
