"""Rows without messages: raw text, and a question with its answer in columns of their own."""
