"""Guards on data that teaches the wrong habit: told with counts and places, alone no error.

``rows`` looks at one row as it is read, ``policies`` at a row for a policy classifier, ``answers``
at all answers of a source, ``sources`` says what they found. ``--strict`` of check-data and preview
makes errors of it.
"""
