"""Work on a stranger's text that may never end: done in a process that can be killed.

``worker``: the process as its user sees it, kept alive between jobs and started again after a kill.
``process``: what runs in it. ``maths_job`` and ``schema_job``: the two jobs.
"""
