"""The built-in tool ``python`` of one episode, and the environment that offers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gptoss_tune.environments.environment import Tool
from gptoss_tune.environments.notebook import REACHED, notebook
from gptoss_tune.environments.rows import RowTools
from gptoss_tune.grading.code.sandbox import Job, Limits, Outcome, run
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings

MOST_SHOWN: Final = 4_000
"""Characters of an output that the model is shown: the first and the last of a longer one."""
LONGEST_CODE: Final = 100_000
"""Characters of all cells of an episode."""
_SILENT: Final = "(no output; print what you want to see)"
_OVERHEAD_S: Final = 2.0
"""Of a call's time, for the sandbox to start and to end."""


class PythonTool:
    """Runs the cells of one episode."""

    def __init__(self, seconds: float) -> None:
        """Allow ``seconds`` to each call, the cells before it included."""
        self._seconds = max(seconds - _OVERHEAD_S, seconds / 2)
        self._cells: list[str] = []

    def tool(self) -> Tool:
        """Return it as an environment gives it."""
        description = "Python in a sandbox, announced in the system message as released."
        return Tool("python", description, None, self.run, builtin=True)

    def run(self, code: str) -> str:
        """Return what a cell prints, its last value, or its error.

        A cell that did not end is not among those that the next ones find.

        Raises:
            MachineError: The sandbox cannot be set up.
        """
        if sum(map(len, self._cells)) + len(code) > LONGEST_CODE:
            return f"Error: the code of this conversation has over {LONGEST_CODE:,} characters"
        limits = Limits(timeout_s=self._seconds, output_kib=256)
        outcome = run(Job(notebook([*self._cells, code]), limits=limits))
        if outcome.ended == "exited" and outcome.code == REACHED:
            self._cells.append(code)
        return shown(outcome, self._seconds)


def shown(outcome: Outcome, seconds: float) -> str:
    """Return what the model is shown of a run.

    Args:
        outcome: Of the sandbox.
        seconds: That the run had.
    """
    out = outcome.stdout.decode("utf-8", "replace")
    error = outcome.stderr.decode("utf-8", "replace")
    parts = [part.rstrip("\n") for part in (out, error) if part.strip()]
    if outcome.ended == "timed out":
        parts.append(f"Error: timed out after {seconds:g} seconds; nothing of this cell is kept")
    elif outcome.ended == "refused":
        parts.append(f"Error: not run: {outcome.why}")
    elif outcome.ended != "exited":
        parts.append(f"Error: ended for {outcome.ended}; nothing of this cell is kept")
    elif outcome.code != REACHED:
        parts.append(f"Error: the process ended with code {outcome.code}; this cell is not kept")
    text = "\n".join(parts) or _SILENT
    if len(text) <= MOST_SHOWN:
        return text
    half = MOST_SHOWN // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n... ({left_out:,} characters left out) ...\n{text[-half:]}"


class CodeTools(RowTools):
    """The environment ``python``: the tools of the row, and code in the sandbox.

    Whoever makes it asks ``grading.code.protection.require`` first.
    """

    def __init__(self, reading: ReadSettings = AS_IT_STANDS, *, tool_seconds: float) -> None:
        """Allow ``tool_seconds`` to each call."""
        super().__init__(reading)
        self._python = PythonTool(tool_seconds)

    def tools(self) -> Sequence[Tool]:
        """Return the row's tools and ``python``."""
        return [*super().tools(), self._python.tool()]
