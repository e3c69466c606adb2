"""Checks before a job: what can be refused is refused before torch, a download or a GPU is touched.

``training`` joins what a run needs: ``files`` (base, data, output folder), ``machine`` (GPUs,
libraries, days on a CPU), ``changes`` (names of ``--allow-change``); every obstacle is told at once
(``obstacles``). ``unusual`` warns of settings far out of the usual range. ``finished`` looks at
what ``merge``, ``push`` and the other commands on a run are given. Nothing here imports torch, and
nothing writes. What only the job itself can know is still refused there.
"""
