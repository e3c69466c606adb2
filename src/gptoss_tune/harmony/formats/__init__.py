"""Rows of every known format -> conversations; a row is recognised by its columns."""
