"""``python -m gptoss_tune``: the command ``gptoss-tune`` without its script."""

from gptoss_tune.cli import main

main()
