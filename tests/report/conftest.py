"""Runs made of files alone: what the page reads, without training anything."""

import json

import pytest

from gptoss_tune.recipe import load_recipe
from gptoss_tune.testing.tiny import tiny_config


def write_run(folder, *, steps=20, layers=3, experts=4, base=None, **changes):
    """Write the files of a finished run; ``changes`` replaces entries of its record."""
    folder.mkdir(parents=True)
    recipe_file = folder.parent / f"{folder.name}.yaml"
    recipe_file.write_text(
        f"model: {{name_or_path: {base or 'openai/gpt-oss-20b'}}}\n"
        "data: {train: data/tiny/train.jsonl}\n"
        f"train: {{output_dir: {folder}, max_steps: {steps}}}\n"
    )
    by_channel = {"other": 0, "analysis": 300, "commentary": 20, "final": 100}
    record = {
        "status": "finished",
        "recipe": load_recipe(recipe_file, []).model_dump(mode="json"),
        "base": {"name": "openai/gpt-oss-20b", "fingerprint": "f" * 64},
        "environment": {
            "gptoss_tune": "0.1.0",
            "python": "3.11",
            "gpus": [],
            "processes": 1,
            "libraries": {"torch": "2.13.0"},
        },
        "guard": {"warnings": []},
        "footprint": [
            {"kind": "adapters", "precision": "fp32", "parameters": 1000, "nbytes": 4000},
        ],
        "tokens": {
            "read": 1000,
            "trained": 420,
            "trained_by_channel": by_channel,
            "by_dataset": [
                {
                    "path": "data/tiny/train.jsonl",
                    "weight": 1.0,
                    "read": 1000,
                    "trained": 420,
                    "trained_by_channel": by_channel,
                }
            ],
        },
        "peak_memory_bytes": 3 * 2**30,
        "seconds": 75.0,
        **changes,
    }
    (folder / "run.json").write_text(json.dumps(record))
    with (folder / "metrics.jsonl").open("w") as stream:
        for step in range(1, steps + 1):
            row = {
                "step": step,
                "epoch": step / steps,
                "loss": 4.0 / step + 0.5,
                "loss_analysis": 5.0 / step + 0.5,
                "loss_final": 3.0 / step + 0.5,
                "learning_rate": 2e-4 * (1 - step / (steps + 1)),
                "grad_norm": 1.0 / step,
                "tokens_per_second": 1000.0 + step,
                "seconds_per_step": 0.5,
                "memory_gib": 3.0,
                "router_entropy": 0.95,
                "router_entropy_lowest": 0.9,
                "tokens": 50.0 * step,
                "trained_tokens_total": 21.0 * step,
            }
            stream.write(json.dumps(row) + "\n")
        stream.write(json.dumps({"step": steps, "eval_loss": 0.75, "eval_loss_final": 0.7}) + "\n")
    with (folder / "layers.jsonl").open("w") as stream:
        for step in (1, steps // 2, steps):
            even = [[100] * experts for _ in range(layers)]
            even[0][0] += 40 * (step - 1)
            norms = {
                "attention": [0.1 * (layer + 1) for layer in range(layers)],
                "experts": [0.2] * layers,
            }
            line = {"step": step, "grad_norm": norms, "expert_load": even, "load_steps": 1}
            stream.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run of this name."""
    return lambda name="run", **options: write_run(tmp_path / name, **options)


@pytest.fixture
def tiny_base(tmp_path):
    """A folder with the configuration of the tiny model alone, which is all a plan reads."""
    folder = tmp_path / "tiny-base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    return folder
