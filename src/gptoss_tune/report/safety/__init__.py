"""The safety of a run on paper: ``page`` for a reviewer to sign, ``section`` of the report.

``tables`` draws what both have. All of it comes from ``evaluation/step-N.json``, whose texts may be
harmful and hostile: they are escaped, and shown folded.
"""
