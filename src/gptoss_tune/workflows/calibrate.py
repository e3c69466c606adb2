"""``gptoss-tune merge --calibrate``: recover what the rounding to MXFP4 would drop.

A change smaller than half a step of the MXFP4 grid is rounded away. Continuing the run merge-aware,
on data like that of its training, moves A and B until the rounded weights themselves act as the
adapter did; the export then holds those weights bit for bit. It is a run like any other, in
``OUT.calibration``: it has a recipe and metrics, a stopped one is continued, and its adapter stays.

Fitting the rounding block by block to the layer's inputs, as post-training quantisation does, was
the alternative: it changes scales and codes that no adapter describes, so nothing could prove
afterwards that the file holds what was trained.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_tune.export.merge.steps import WeightedAdapter
    from gptoss_tune.recipe import Recipe
    from gptoss_tune.weights import Checkpoint
    from gptoss_tune.workflows.finished_run import Merged

STEPS = 200
"""Optimizer steps of a calibration that names no number."""
# Near its end already: large steps would first undo what was trained.
_SHARE_OF_LEARNING_RATE = 0.5


@dataclass(frozen=True)
class Calibration:
    """What was asked for on the command line.

    Attributes:
        run: The run to continue.
        data: Path of the data, relative to the current directory.
        steps: Optimizer steps.
        out: The merge's output folder; the training's is beside it.
    """

    run: Path
    data: str
    steps: int
    out: Path

    def recipe(self, base: str | None, revision: str | None) -> Recipe:
        """Return the run's recipe, changed to continue it merge-aware.

        Args:
            base: Base named on the command line; ``None``: the run's own.
            revision: Its revision.

        Raises:
            RecipeError: The run's recipe cannot be read, or cannot be trained merge-aware.
            DataError: There is no such data.
            RecipeError: The run was held to the adapter that it started from.
        """
        from gptoss_tune.errors import DataError, RecipeError
        from gptoss_tune.recipe import DataSource
        from gptoss_tune.recipe.schema import reference_of
        from gptoss_tune.run.record import load_run_recipe

        trained = load_run_recipe(self.run)
        # A file of the run's own data keeps the templates of its columns.
        own = [source for source in trained.data.train if source.path == self.data]
        if not own and not Path(self.data).exists():
            raise DataError(
                f"--calibrate: {self.data}: no such file, nor is it among the run's own data "
                f"({', '.join(source.path for source in trained.data.train)}); name a file of "
                "conversations like those of the training"
            )
        source = own[0] if own else DataSource(path=self.data)
        changes: dict[str, Any] = {
            "model.experts_precision": "mxfp4",
            "lora.merge_aware": True,
            "lora.init_from": str(self.run),
            "data.train": [source.model_dump(exclude_defaults=True)],
            "data.eval": None,
            "data.eval_fraction": None,
            "train.output_dir": str(self.out.with_name(f"{self.out.name}.calibration")),
            "train.max_steps": self.steps,
            "train.num_train_epochs": None,
            "train.learning_rate": trained.train.learning_rate * _SHARE_OF_LEARNING_RATE,
            "train.lr_scheduler_type": "cosine",
            "train.warmup_steps": None,
            "train.warmup_ratio": None,
            "train.eval_steps": None,
            "train.save_steps": None,
            "train.resume": "auto",
            "tracking.wandb": "disabled",
            "tracking.project": None,
            "tracking.run_name": None,
            "distributed.num_processes": 1,
            "distributed.strategy": None,
            "distributed.context_parallel": 1,
        }
        reference = reference_of(trained.method, trained.lora)
        if reference == "init_adapter":
            raise RecipeError(
                f"--calibrate: {self.run} was trained by {trained.method.name} against the adapter "
                "of its lora.init_from, and a calibration starts from the run's own; train it "
                "again with lora.merge_aware: true, whose export loses nothing"
            )
        if reference == "base":
            # Left out, it would become the adapter that is started from: the trained one.
            changes["method.reference"] = "base"
        if base is not None:
            changes |= {"model.name_or_path": base, "model.revision": revision}
        overrides = [f"{key}={_yaml(value)}" for key, value in changes.items()]
        return load_run_recipe(self.run, overrides)


def merge_calibrated(
    recipe: Recipe,
    checkpoint: Checkpoint,
    weighted: list[WeightedAdapter],
    export: Callable[[list[WeightedAdapter]], Merged],
    *,
    other_base: bool,
) -> Merged:
    """Export a run; where too little of it survives, train ``recipe`` and export that instead.

    Args:
        recipe: What ``Calibration.recipe`` returned.
        checkpoint: The base.
        weighted: The run's adapter, alone.
        export: Merges adapters into the output folder.
        other_base: Accept a base with other weights than the run was trained on.

    Returns:
        What was merged; its report has ``calibration`` where there was one: its run, and the
        survival before it.

    Raises:
        CheckpointError: The base is not packed as MXFP4; a finished calibration is of another
            adapter.
        GptossTuneError: What training or merging refuses; ``RunInterrupted`` when stopped.
    """
    from gptoss_tune.export.merge.merge import TooLittleSurvives
    from gptoss_tune.export.merge.steps import WeightedAdapter
    from gptoss_tune.run.record import update_record
    from gptoss_tune.train.entrypoint import starting
    from gptoss_tune.weights.adapter import open_adapter

    folder, digest = Path(recipe.train.output_dir), weighted[0].adapter.digest
    settings = recipe.model_dump(mode="json")
    record = _record(folder, settings)
    before = _survival_before(record, digest, recipe.lora.init_from, folder)
    if before is None:
        try:
            done = export(weighted)
        except TooLittleSurvives as loss:
            before = loss.share
        else:
            kept = done.report["survival"]["total"]
            _say(f"calibration is not needed: {kept:.1%} survives MXFP4")
            return done
        _refuse_dense_base(checkpoint)
        _say(
            f"only {before:.1%} of the experts' change survives MXFP4: training "
            f"{recipe.train.max_steps} steps merge-aware in {folder}"
        )
        if record.get("status") != "finished":
            _refuse_other_settings(folder, settings)
            with starting():
                from gptoss_tune.train.run import train

            # Standard output belongs to the merge's report, which may be read by a machine.
            with contextlib.redirect_stdout(sys.stderr):
                train(recipe)
        update_record(folder, calibration={"adapter": digest, "survival_before": before})
    calibrated = open_adapter(folder, checkpoint, other_base=other_base)
    done = export([WeightedAdapter(calibrated, 1.0)])
    after = done.report["survival"]["total"]
    _say(f"survival in MXFP4: {before:.1%} as trained, {after:.1%} after calibration in {folder}")
    noted = {"run": str(folder), "survival_before": before}
    return replace(done, report={**done.report, "calibration": noted})


def _record(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the record of the calibration with these settings; empty where it has not begun."""
    from gptoss_tune.run.record import read_record

    record = read_record(folder)
    # Another one there is refused before the training.
    return record if record.get("recipe") == settings else {}


def _refuse_dense_base(checkpoint: Checkpoint) -> None:
    """Refuse a base that has no codes to round to.

    Raises:
        CheckpointError: Its experts are not packed as MXFP4.
    """
    from gptoss_tune.errors import CheckpointError

    if checkpoint.expert_format != "mxfp4":
        raise CheckpointError(
            f"{checkpoint.path}: its experts are {checkpoint.expert_format}; merge-aware "
            "training rounds to the codes of an MXFP4 base, name one with --base, or export "
            "with --format bf16"
        )


def _refuse_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to calibrate where a finished calibration of other settings lies, and name them.

    Raises:
        RecipeError: There is one.
    """
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.recipe.dump import by_name
    from gptoss_tune.run.record import read_record
    from gptoss_tune.train.resume.changes import changed

    record = read_record(folder)
    if record.get("status") != "finished":
        return  # the training itself continues one, or names what differs
    there = record.get("recipe", {})
    differs = "\n  ".join(map(str, changed(by_name(there), by_name(settings))))
    raise RecipeError(
        f"{folder}: the calibration there is finished and was made with other settings; it differs "
        f"in\n  {differs}\nset these back to use it, remove it, or choose another output folder"
    )


def _survival_before(
    record: dict[str, Any], digest: str, trained: str | None, folder: Path
) -> float | None:
    """Return what a finished calibration noted; ``None`` where it is still to be found out.

    Args:
        record: Of the calibration in ``folder``.
        digest: Of the adapter to export.
        trained: The run that holds it.
        folder: For the message.

    Raises:
        CheckpointError: It is the calibration of another adapter.
    """
    from gptoss_tune.errors import CheckpointError

    noted = record.get("calibration")
    if noted is None:
        return None
    if noted["adapter"] != digest:
        raise CheckpointError(
            f"{folder}: is the calibration of another adapter than "
            f"{trained} holds now; remove it, or choose another output folder"
        )
    return noted["survival_before"]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _yaml(value: object) -> str:
    """Return a value as JSON, which is YAML in which a text stays a text."""
    return json.dumps(value, ensure_ascii=False)
