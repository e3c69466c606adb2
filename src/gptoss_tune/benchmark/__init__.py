"""Benchmarks: the same tasks put to several subjects, in process or served, in one table.

``subject``: what every subject is, and what it gives back. ``suite``: what is asked. ``subjects/``:
models in process and servers. ``runner``: asks and grades, by the ``cache``. ``statistics``,
``figures``: what came of it, with its uncertainty. ``table``: for a terminal. ``requirement``: for
a script.
"""
