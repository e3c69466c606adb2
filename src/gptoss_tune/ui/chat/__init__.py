"""The chat: the ``models`` there are, one in its ``worker``, its ``session``, the ``routes``."""
