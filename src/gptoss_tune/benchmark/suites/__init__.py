"""Suites: tasks from files, from the run's own held-out rows, from packages; generated needles.

``schema``: what a suite file says. ``read``: YAML to that, every mistake with its place. ``open``:
a name or a path to a ``Suite``. ``of_recipe``: the suites that a recipe asks for. ``held_out``: the
run's own rows as questions. ``needles``: long contexts, written when they are asked for.
``packages``: files that an installed package ships. ``listing``: what ships with this one.
"""
