"""Metrics in a local trackio database, ``RUN/trackio``: no server, no Space, no user's name.

``trackio.init`` is not called: it asks the Hub for the name behind the login, prints its own
instructions, watches the machine, and goes to a Space or a server when an environment variable
names one. The lines go straight into the database that its dashboard reads, ``TRACKIO_DIR=
RUN/trackio trackio show``. A resumed run takes out the lines past its step, as it does in
``metrics.jsonl``: trackio itself would keep both, or with numbered lines the older.
"""

from __future__ import annotations

import math
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from transformers import TrainerState

from gptoss_tune.recipe.schema import TrackingSection
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.metrics.trackers import Tracker


class TrackioTracker(Tracker):
    """Write every logged line of figures, and the resolved recipe, to a local trackio database."""

    def __init__(self, tracking: TrackingSection, run: Path, config: dict[str, Any]) -> None:
        """Track the run in ``run`` under the names of the recipe."""
        self._project = tracking.project or "gptoss-tune"
        self._name = tracking.run_name or run.resolve().name
        self._folder, self._config = RunFolder(run).trackio, config

    def open(self, step: int) -> None:
        """Open the database, without the lines past ``step``, which are about to come again."""
        # Read by trackio when it is imported, and the only way to say where it writes. Others name
        # a bucket or dataset on the Hub, which it would load from and save to: local is local.
        for name in [name for name in os.environ if name.startswith("TRACKIO_")]:
            if not name.startswith("TRACKIO_SQLITE_"):
                del os.environ[name]
        os.environ["TRACKIO_DIR"] = str(self._folder.absolute())
        from trackio.sqlite_storage import SQLiteStorage

        self._storage = SQLiteStorage
        with closing(sqlite3.connect(SQLiteStorage.init_db(self._project))) as database, database:
            database.execute(
                "DELETE FROM metrics WHERE run_name = ? AND step > ?", (self._name, step)
            )

    def write(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Write one line of metrics."""
        figures = {
            name: value
            for name, value in logs.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._storage.bulk_log(
            self._project, self._name, [figures], [state.global_step], config=self._config
        )

    def shut(self) -> None:
        """Nothing is held open between two lines."""
