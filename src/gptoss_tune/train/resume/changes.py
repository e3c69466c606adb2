"""Changes between a run and its continuation: refused, unless allowed by name.

Every difference stops the continuation at once, all of them in one message, because a loss curve
from two recipes looks like one from either. What is meant is allowed by its name, ``--allow-change
train.learning_rate``, takes effect, and is written into ``run.json`` with the step. Continuing
silently with the new value, or silently with the old one, is what other trainers do.

The number of processes, how they share the model and the rows, the kind of GPU and the tile of
tokens that the experts see are only noted: every step keeps its rows, and sums come out in another
order.

Who a run is (``Identity``): its id, what it computes from, and what was allowed to change on the
way. The id is drawn when a folder is first written into and stands in ``run.json`` and in every
checkpoint, so that a checkpoint copied from elsewhere is not taken for one of the run's own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss_tune.errors import RecipeError
from gptoss_tune.plan.architecture import architecture_of
from gptoss_tune.plan.disk import run_files
from gptoss_tune.recipe.contradictions.best import measured_rules
from gptoss_tune.recipe.contradictions.schedule import stage_rules
from gptoss_tune.recipe.renamed import entry_in_new_name
from gptoss_tune.recipe.rules import warmup_rules
from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.run.start import check_disk
from gptoss_tune.train.resume.fingerprint import Place, environment_source, fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

    from gptoss_tune.train.context import RunContext

NOTED = {"processes", "strategy", "context_parallel", "device", "expert_tile"}
"""Entries of a fingerprint whose change is told and written down, and stops nothing."""
_BEFORE_IT_WAS = {
    "train.deterministic": False,
    "method.name": "sft",
    "environment": None,
    "context_parallel": 1,
    "expert_tile": None,
    "lora.experts": "all",
    "model.head_precision": "bf16",
    "model.head": "gpu",
    "train.lr_scheduler_kwargs": None,
    "train.keep_best": None,
    "train.early_stopping": None,
}
"""What runs did that were started before a setting existed."""
ROWS = ("data.train_rows", "data.eval_rows")
"""Entries of a fingerprint that stand for all settings of the data."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST = 60
_ABSENT = "(nothing of that name)"


@dataclass(frozen=True)
class Change:
    """One entry of a fingerprint that is not what it was."""

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        """Return ``name: was there, now here``."""
        return f"{self.name}: {shortened(self.was)} there, {shortened(self.now)} here"

    @property
    def allowed_by_name(self) -> bool:
        """Whether it takes ``--allow-change`` to go on with it."""
        return self.name not in NOTED

    def as_json(self, step: int) -> dict[str, Any]:
        """Return the entry for ``run.json``."""
        return {"step": step, "name": self.name, "was": self.was, "now": self.now}


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Return what differs, by name.

    The settings of the data count only when the rows they gave are not the same: the rows are all
    that training sees of them.
    """
    found = changed(_BEFORE_IT_WAS | before, now)
    # An earlier version knew a base by the starts of its tensors alone; the whole says more.
    less = "base.weights" if "base.content" in before else "base.content"
    found = [one for one in found if one.name != less]
    if all(before.get(name) == now.get(name) for name in ROWS):
        found = [one for one in found if not one.name.startswith("data.")]
    return found


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Return every entry that is not the same in both, by name."""
    return [
        Change(name, before.get(name, _ABSENT), now.get(name, _ABSENT))
        for name in sorted(before.keys() | now.keys())
        if before.get(name, _ABSENT) != now.get(name, _ABSENT)
    ]


def settle(
    before: dict[str, Any] | None,
    now: dict[str, Any],
    *,
    allowed: Collection[str],
    recorded: Sequence[dict[str, Any]],
    step: int,
    where: str,
    train: TrainSection,
) -> list[Change]:
    """Return the differences that a continuation goes on with, or refuse it.

    Args:
        before: Fingerprint of what is continued; ``None``: nothing is.
        now: Fingerprint of the continuation.
        allowed: Names given with ``--allow-change``.
        recorded: ``changes`` of ``run.json``: what was allowed in earlier continuations.
        step: Where the continuation starts.
        where: The folder, for the message.
        train: To say which setting keeps the rows of a step.

    Raises:
        RecipeError: Something differs that is not allowed, a name is unknown or allows nothing, or
            the run is to end before the step it has reached.
    """
    found = changes(before, now) if before is not None else []
    _refuse_names(found, allowed, recorded, now, before)
    stopping = [one for one in found if one.allowed_by_name and one.name not in allowed]
    if stopping:
        flags = " ".join(f"--allow-change {one.name}" for one in stopping)
        lines = [f"{one}{_advice(one, now, train)}" for one in stopping]
        raise RecipeError(
            f"train.output_dir: {where} holds a run of other settings; it differs in\n  "
            + "\n  ".join(lines)
            + "\nset these back to continue that run, choose another folder, or continue with the "
            f"change: {flags}"
        )
    if step > now["steps"]:
        raise RecipeError(
            f"train.output_dir: the run in {where} has made {step} steps, and is to have "
            f"{now['steps']}; raise train.max_steps or num_train_epochs"
        )
    return found


def _refuse_names(
    found: list[Change],
    allowed: Collection[str],
    recorded: Sequence[dict[str, Any]],
    now: dict[str, Any],
    before: dict[str, Any] | None,
) -> None:
    known = {name for name in now.keys() | (before or {}).keys() if name not in NOTED}
    # A job that is started again by the same command has been allowed this before.
    needed = {one.name for one in found} | {entry.get("name") for entry in recorded}
    for name in allowed:
        if name not in known:
            near = [entry_in_new_name(name)]
            if near[0] not in known:
                near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise RecipeError(f"--allow-change {name}: nothing of that name is compared; {hint}")
        if name not in needed:
            reason = "nothing is continued" if before is None else "it does not differ"
            raise RecipeError(f"--allow-change {name}: {reason}; leave it out")


def _advice(one: Change, now: dict[str, Any], train: TrainSection) -> str:
    """Return what keeps the rows of a step, where the batch differs, or the environment."""
    if one.name == "environment":
        spec = str(one.was).partition(",")[0]
        return f" (--environment {spec}, with the file as it was, keeps it)" if one.was else ""
    if one.name == "batch" and now.get("method.name") == "grpo":
        return f" (method.prompts_per_step={one.was} keeps it)"
    if one.name != "batch" or not isinstance(one.was, int):
        return ""
    groups = now["processes"] // now.get("context_parallel", 1)
    rows = train.per_device_train_batch_size
    steps, rest = divmod(one.was, groups * rows)
    if rest == 0 and steps:
        kept = f"train.gradient_accumulation_steps={steps} keeps it"
    else:
        kept = "no train.gradient_accumulation_steps keeps it"
    return f" ({kept} with {groups} x {rows} rows)"


def shortened(value: Any) -> str:
    """Return an entry of a fingerprint as a message shows it: its digests in their first digits."""
    text = _DIGEST.sub(
        lambda found: found[0][:12], value if isinstance(value, str) else repr(value)
    )
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_WORTH_A_WORD = 1 << 30
"""Bytes of a base whose first hashing takes long enough to be told."""
_STARTS_ALONE = (
    "continues a run of an earlier version, which knew its base by the first 4 KiB of each tensor: "
    "those are the same, the rest cannot be compared"
)
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
        changes: What was allowed to differ, in all continuations, as in ``run.json``.
        notes: What the user should be told of this continuation.
    """

    run_id: str
    fingerprint: dict[str, Any]
    changes: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def manifest(self, step: int) -> dict[str, Any]:
        """Return what the manifest of the checkpoint of ``step`` says besides its files."""
        return {"run_id": self.run_id, "step": step, "fingerprint": self.fingerprint}

    def record(self) -> dict[str, Any]:
        """Return what ``run.json`` says."""
        return {
            "run_id": self.run_id,
            "fingerprint": self.fingerprint,
            "changes": list(self.changes),
        }


def computed_from(
    context: RunContext, train_set: Dataset, eval_set: Dataset | None
) -> dict[str, Any]:
    """Return what this rank's run is computed from: its fingerprint; every rank has to call it.

    Args:
        context: What is trained, on which base, and where it runs.
        train_set: The rendered rows.
        eval_set: Those held out.

    Raises:
        MachineError: An engine cannot run here.
        CheckpointError: The adapter to start from is not there.
    """
    recipe, base = context.recipe, context.base
    place = Place(
        context.state.num_processes,
        context.parallelism,
        context.device,
        context.groups.context_ranks,
        context.expert_tile,
    )
    new = base.unhashed_bytes()
    if new > _WORTH_A_WORD:
        context.console.print(
            f"base: {new / 2**30:.1f} GiB are read to know them again, once for this copy of the "
            f"files (at 1 GB/s a core {new / 1e9:.0f} s)"
        )
    with context.state.local_main_process_first():  # the others find it in the cache
        base.fingerprint()
    named, made = context.environment, context.environment_class
    played_by = None if named is None or made is None else environment_source(named, made)
    now = fingerprint(recipe, base, train_set, eval_set, place, played_by)
    if context.loss is not None:
        now["loss"] = f"{context.loss.__module__}.{getattr(context.loss, '__qualname__', '')}"
    return now


def identify(context: RunContext, now: dict[str, Any], allow_change: Sequence[str]) -> Identity:
    """Return who the run is, before any weight is read.

    Args:
        context: What is trained, and where it starts.
        now: Of ``computed_from``.
        allow_change: Names that may differ from what is continued.

    Raises:
        RecipeError: The run differs from what it continues, and that was not allowed; or its
            warm-up is as long as itself, its schedule's stages do not fit, or the figure of its
            best weights or early end is measured at its end alone.
    """
    recipe, start = context.recipe, context.start
    before, notes = start.before, ()
    if before is not None:
        # An earlier version may have begun the run.
        before = {entry_in_new_name(name): value for name, value in before.items()}
        notes = () if "base.content" in before else (_STARTS_ALONE,)
    found = settle(
        before,
        now,
        allowed=allow_change,
        recorded=start.changes,
        step=start.step,
        where=str(start.folder),
        train=recipe.train,
    )
    steps = now["steps"]
    measured = (recipe.train, recipe.method, recipe.data, recipe.evaluation, steps)
    for one in (
        *warmup_rules(recipe.train, steps),
        *stage_rules(recipe.train, steps),
        *measured_rules(*measured),
    ):
        raise RecipeError(str(one))
    entries = tuple(one.as_json(start.step) for one in found)
    notes += tuple(map(_note, found))
    return Identity(start.run_id, now, (*start.changes, *entries), notes)


def refuse_full_disk(context: RunContext) -> None:
    """Refuse a run whose checkpoints will not fit, before minutes are spent on hashing its base.

    Raises:
        MachineError: The disk has no room for it.
    """
    recipe, start = context.recipe, context.start
    architecture = architecture_of(str(context.base.path))
    check_disk(start.folder, run_files(architecture, recipe.lora, recipe.train))


def _note(one: Change) -> str:
    if one.allowed_by_name:
        consequence = f"; {_OTHER_ROWS}" if one.name == "batch" else ""
        return f"continues with a change, as allowed: {one}{consequence}"
    return f"continues with a change: {one}; {_SAME_ROWS}"
