"""``python -m gptoss_tune``: the command where its script is not on the path."""

from gptoss_tune.cli import main

main()
