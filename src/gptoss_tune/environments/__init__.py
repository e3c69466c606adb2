"""Worlds in which a model acts and is rewarded: tasks, tools, rewards; no torch.

``environment``: the protocol, and what an episode is to it. ``load``: environments by name, and a
class of the user's own. ``rows``: tools with the results that a row holds. ``python_tool``: code in
the sandbox, as the cells of a ``notebook``. ``tools``: calls, checked and ended at their time.
``rewards``: what an episode is worth.
"""

from gptoss_tune.environments.environment import Environment, Outcome, Task, Tool, ToolUse

__all__ = ["Environment", "Outcome", "Task", "Tool", "ToolUse"]
