"""Benchmarks: the same tasks put to several subjects, in process or served, in one table.

``subjects/``: what a subject is and gives back; models in process, and servers. ``suites/``: what
is asked, and how. ``request``: what a command line wants. ``runner``: asks and grades, by the
``cache``. ``statistics``, ``figures``: what came of it, with its uncertainty. ``table``: for a
terminal. ``requirement``: for a script. ``contamination``: what stands in the rows of training.
"""
