"""Who a run is: its id, what it computes from, and what was allowed to change on the way.

The id is drawn when a folder is first written into and stands in ``run.json`` and in every
checkpoint, so that a checkpoint copied from elsewhere is not taken for one of the run's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss_tune.plan.architecture import architecture_of
from gptoss_tune.plan.disk import run_files
from gptoss_tune.run import folder
from gptoss_tune.train.drift import Drift, settle
from gptoss_tune.train.fingerprint import Place, fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

    from gptoss_tune.recipe import Recipe
    from gptoss_tune.weights import Checkpoint

_SAME_ROWS = "every step keeps its rows, its sums come out in another order"
_OTHER_ROWS = (
    "the epoch's position is counted in steps, so some of its rows come twice or not at all"
)


@dataclass(frozen=True)
class Identity:
    """A run, as its checkpoints name it.

    Attributes:
        run_id: The run's own.
        fingerprint: What it computes from.
        drift: What was allowed to differ, in all continuations, as in ``run.json``.
        notes: What the user should be told of this continuation.
    """

    run_id: str
    fingerprint: dict[str, Any]
    drift: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def manifest(self, step: int) -> dict[str, Any]:
        """Return what the manifest of the checkpoint of ``step`` says besides its files."""
        return {"run_id": self.run_id, "step": step, "fingerprint": self.fingerprint}

    def record(self) -> dict[str, Any]:
        """Return what ``run.json`` says."""
        return {"run_id": self.run_id, "fingerprint": self.fingerprint, "drift": list(self.drift)}


def identify(
    recipe: Recipe,
    start: folder.Start,
    base: Checkpoint,
    train_set: Dataset,
    eval_set: Dataset | None,
    place: Place,
    allow_drift: Sequence[str],
) -> Identity:
    """Return who the run is, before any weight is read.

    Args:
        recipe: What is trained.
        start: Where it starts.
        base: Its opened base.
        train_set: The rendered rows.
        eval_set: Those held out.
        place: Where it runs.
        allow_drift: Names that may differ from what is continued.

    Raises:
        RecipeError: The run differs from what it continues, and that was not allowed.
        MachineError: The disk has no room for it, or an engine cannot run here.
        CheckpointError: The adapter to start from is not there.
    """
    folder.check_disk(start.folder, run_files(architecture_of(str(base.path)), recipe))
    now = fingerprint(recipe, base, train_set, eval_set, place)
    found = settle(
        start.before,
        now,
        allowed=allow_drift,
        recorded=start.drift,
        step=start.step,
        where=str(start.folder),
        train=recipe.train,
    )
    entries = tuple(one.as_json(start.step) for one in found)
    return Identity(start.run_id, now, (*start.drift, *entries), tuple(map(_note, found)))


def _note(one: Drift) -> str:
    if one.allowed_by_name:
        consequence = f"; {_OTHER_ROWS}" if one.name == "batch" else ""
        return f"continues with a change, as allowed: {one}{consequence}"
    return f"continues with a change: {one}; {_SAME_ROWS}"
