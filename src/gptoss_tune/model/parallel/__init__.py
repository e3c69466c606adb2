"""One model on several ranks: its weights spread (``sharding``), a row spread (``context``)."""
