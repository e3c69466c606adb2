"""Metrics to Weights & Biases, online or into the run's folder.

Only figures and the resolved recipe are sent: not the command line, where people put tokens, and
not the source code. A service that cannot be reached, or that does not know the key, is said in one
line; the run goes on and keeps its lines offline. Stopping the run was the alternative: a night's
training would depend on a web page.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerState

from gptoss_tune.display import shown_safely
from gptoss_tune.recipe.schema import TrackingSection
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.metrics.trackers import Tracker

_START_S, _END_S = 20.0, 60.0
"""How long a service that does not answer may hold up a run, at its start and at its end."""


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Take standard input away: without a key wandb asks for one, and a run would wait forever."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


class WandbTracker(Tracker):
    """Send the metrics to Weights & Biases, online or into the run's folder."""

    def __init__(
        self, tracking: TrackingSection, run: Path, config: dict[str, Any], run_id: str
    ) -> None:
        """Track the run in ``run`` under the names of the recipe; ``run_id`` continues it."""
        self._mode = tracking.wandb
        self._offline_folder = RunFolder(run).wandb
        self._options: dict[str, Any] = {
            "project": tracking.project or "gptoss-tune",
            "name": tracking.run_name or run.name,
            "entity": tracking.entity,
            "group": tracking.group,
            "tags": tracking.tags or None,
            "dir": str(run),
            "config": config,
            "id": run_id,
            "resume": "allow",
        }

    def open(self, step: int) -> None:
        """Open the tracked run; if the service cannot be reached, say so and train on offline."""
        import wandb
        from wandb.errors import CommError, UsageError

        wanted: dict[str, Any] = {
            "disable_code": True,
            "disable_git": True,
            "save_code": False,
            "x_disable_meta": True,
            "silent": True,
            "init_timeout": _START_S,
            "finish_timeout": _END_S,
        }
        known = wandb.Settings.model_fields  # older versions have no limit for the end
        settings = wandb.Settings(**{name: v for name, v in wanted.items() if name in known})
        options = {**self._options, "settings": settings}
        try:
            with _nobody_to_ask():
                self._run = wandb.init(mode=self._mode, **options)  # pyright: ignore[reportArgumentType]
        except (CommError, UsageError) as error:
            words = [type(error).__name__, *str(error).splitlines()]
            sys.stderr.write(
                f"wandb takes no metrics ({shown_safely(': '.join(words[:2]))}); the run goes on, "
                f"they are kept offline in {self._offline_folder}: `wandb login`, then `wandb "
                "sync` of the folder in it, sends them later\n"
            )
            # Its service holds the id for the attempt that failed until it ends.
            wandb.teardown()
            self._run = wandb.init(mode="offline", **options)

    def write(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Send one line of metrics."""
        self._run.log(logs, step=state.global_step)

    def shut(self) -> None:
        """Finish the tracked run."""
        self._run.finish()

    def abandon(self) -> None:
        """Forget wandb's process, which may be gone; else it is missed with a traceback at exit."""
        import wandb

        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()
