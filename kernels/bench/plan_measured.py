"""Print what a plan predicts beside what is really there: bytes held, kept for backward, on disk.

    python kernels/bench/plan_measured.py

Needs no GPU: bytes of tensors and files do not depend on one. Two models: a tiny gpt-oss with its
files and a run of two steps, and one layer of gpt-oss-20b's shapes with all 32 experts. Exit code 1
when a ratio is further from 1 than 5 %. What is left to a GPU is the peak: ``step.py`` prints it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

from measure import environment

from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.build import build
from gptoss_tune.plan.architecture import Architecture, architecture_of
from gptoss_tune.plan.disk import run_files
from gptoss_tune.plan.memory import layer_saved, memory, model_saved
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.plan.weights import base_bytes
from gptoss_tune.recipe import Recipe
from gptoss_tune.testing.measured import (
    RELEASED_LAYER,
    released_hidden,
    released_layer,
    resident_bytes,
    saved_bytes,
)
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.entrypoint import quiet_libraries
from gptoss_tune.weights import open_checkpoint

WITHIN, LENGTH = 0.05, 24
MODES = ("none", "selective", "full")
Row = tuple[str, float, float]


def main() -> int:
    quiet_libraries()
    print(environment())
    with tempfile.TemporaryDirectory() as folder:
        rows = [*tiny_rows(Path(folder)), *layer_rows()]
    print(f"\n| {'figure':46} | {'planned':>13} | {'measured':>13} | ratio |")
    print(f"|{'-' * 48}|{'-' * 14}:|{'-' * 14}:|------:|")
    for name, planned, measured in rows:
        print(f"| {name:46} | {planned:13,.0f} | {measured:13,.0f} | {planned / measured:5.3f} |")
    worst = max(abs(planned / measured - 1) for _, planned, measured in rows)
    print(f"\nbytes; furthest from 1: {worst:.1%}")
    return int(worst > WITHIN)


def recipe_for(base: str, output: str = "run", **train: object) -> Recipe:
    model = {"name_or_path": base}
    data = {"train": str(Path(output).with_suffix(".jsonl")), "max_length": 256}
    return Recipe.model_validate(
        {
            "model": model,
            "data": data,
            "train": {"output_dir": output, "max_steps": 2, "save_steps": 1, **train},
        }
    )


def setup_of(recipe: Recipe, sizes: Architecture) -> TrainingSetup:
    return TrainingSetup(sizes, recipe.model, recipe.lora, recipe.method, recipe.data, recipe.train)


def tiny_rows(folder: Path) -> list[Row]:
    base = tiny_checkpoint(folder / "base", layers=2, experts=6)
    sizes, rows = architecture_of(str(base)), []
    for mode in MODES:
        recipe = recipe_for(str(base), activation_checkpointing=mode)
        model = build(recipe, open_checkpoint(base), "cpu").model.train()
        if mode == "none":
            kinds, held = memory(setup_of(recipe, sizes)).kinds, resident_bytes(model)
            for kind, size in sorted(held.items()):
                planned = kinds["other weights" if kind == "other" else kind]
                rows.append((f"tiny, held, {kind}", planned, size))
        planned = model_saved(setup_of(recipe, sizes)).bytes(LENGTH)
        measured = saved_bytes(model, LENGTH, dtype="bfloat16")
        rows.append((f"tiny, kept for backward, {mode}", planned, measured))
    return rows + file_rows(folder, str(base))


def file_rows(folder: Path, base: str) -> list[Row]:
    """Train two steps and weigh the files."""
    from gptoss_tune.train.run import train

    recipe = recipe_for(base, str(folder / "run"))
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    line = json.dumps({"messages": turns})
    Path(recipe.data.train[0].path).write_text(4 * (line + "\n"), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        train(recipe)
    files = run_files(architecture_of(base), recipe.lora, recipe.train)
    run = folder / "run"
    return [
        ("tiny, adapter on disk", files.adapter, weight(run / "adapter")),
        ("tiny, checkpoint on disk", files.checkpoint, weight(run / "checkpoint-2")),
    ]


def weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def layer_rows() -> list[Row]:
    sizes, setup = RELEASED_LAYER, setup_of(recipe_for("unused"), RELEASED_LAYER)
    model = released_layer(setup.lora)
    held, planned = resident_bytes(model), base_bytes(sizes, setup.model)
    planned["adapters"] = 4 * sum(factor.parameters for factor in setup.factors)
    rows: list[Row] = [
        (f"20b layer, held, {kind}", planned[kind], size) for kind, size in sorted(held.items())
    ]
    for mode in MODES:
        set_checkpointing(model, mode)
        counted = [
            saved_bytes(model, n, dtype="bfloat16", hidden=released_hidden) for n in (8, LENGTH)
        ]
        by_token = (counted[1] - counted[0]) / (LENGTH - 8)
        name = f"20b layer, kept for backward by token, {mode}"
        around = sizes.hidden * 2 + 4  # the final norm, which is no layer's
        if mode == "full":
            rerun = setup.with_settings({"train.activation_checkpointing": mode})
            one = model_saved(rerun).per_token - around
        else:
            one = layer_saved(setup, setup.factors, with_gate_up=mode == "none").per_token
            around += sizes.head_dim * 2  # cosines and sines, one table for all layers
        rows.append((name, one, by_token - around))
    return rows


if __name__ == "__main__":
    sys.exit(main())
