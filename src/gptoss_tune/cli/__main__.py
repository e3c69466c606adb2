"""``python -m gptoss_tune.cli``: the command ``gptoss-tune`` without its script."""

from gptoss_tune.cli import main

main()
