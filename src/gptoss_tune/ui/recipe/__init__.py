"""A recipe as a form: ``fields``, ``values`` in them, ``files``, its ``plan_view``, ``routes``."""
