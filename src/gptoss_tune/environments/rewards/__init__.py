"""What an episode earned: built-in components, those of an environment, and their weighted sum.

``reward``: all of it. ``components``: the formulas.
"""
