"""Worlds in which a model acts and is rewarded: tasks, tools, rewards; no torch."""
