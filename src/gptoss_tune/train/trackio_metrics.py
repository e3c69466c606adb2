"""Metrics in a local trackio database, ``RUN/trackio``: no server, no Space, no user's name.

``trackio.init`` is not called: it asks the Hub for the name behind the login, prints its own
instructions, watches the machine, and goes to a Space or a server when an environment variable
names one. The lines go straight into the database that its dashboard reads, ``TRACKIO_DIR=
RUN/trackio trackio show``; each has a number of its own, so that lines which a resumed run writes
again are kept once.
"""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.errors import MachineError
from gptoss_tune.recipe.schema import TrackingSection

FOLDER = "trackio"


def refuse_missing_tracker(tracking: TrackingSection) -> None:
    """Stop a run before it begins when what it tracks with is not installed.

    Raises:
        MachineError: trackio is asked for and missing.
    """
    if tracking.trackio == "local" and importlib.util.find_spec("trackio") is None:
        raise MachineError(
            "tracking.trackio is local and trackio is not installed; run `pip install "
            "'gptoss-tune[trackio]'`, or set tracking.trackio: disabled"
        )


class TrackioMetrics(TrainerCallback):
    """Write every logged line of figures, and the resolved recipe, to a local trackio database."""

    def __init__(self, tracking: TrackingSection, run: Path, config: dict[str, Any]) -> None:
        """Track the run in ``run`` under the names of the recipe."""
        self._project = tracking.project or "gptoss-tune"
        self._name = tracking.run_name or run.resolve().name
        self._folder, self._config = run / FOLDER, config
        self._storage: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the database."""
        if not state.is_world_process_zero:
            return
        # Read by trackio when it is imported, and the only way to say where it writes.
        os.environ["TRACKIO_DIR"] = str(self._folder.absolute())
        from trackio.sqlite_storage import SQLiteStorage

        self._storage = SQLiteStorage

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line of metrics."""
        if self._storage is None or not logs:
            return
        # A step can have a line of each kind.
        kinds = [kind for kind in ("loss", "eval_loss", "train_runtime") if kind in logs]
        figures = {
            name: value
            for name, value in logs.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._storage.bulk_log(
            self._project,
            self._name,
            [figures],
            [state.global_step],
            config=self._config,
            log_ids=[f"{self._name}-{(kinds or ['evaluation'])[0]}-{state.global_step}"],
        )

    def close(self) -> None:
        """Nothing is held open between two lines."""
        self._storage = None
