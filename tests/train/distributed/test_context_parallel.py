"""Rows shared by two and four processes, held against the same runs of one process.

All runs of a number of processes are made in one launch (``context_parallel_ranks.py``).
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptoss_tune.testing.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow

STEPS, WINDOW = 4, 24
FACTORS = "adapter/adapter_model.safetensors"
SCRIPT = Path(__file__).with_name("context_parallel_ranks.py")
PACKED = ["data.packing=true", "data.max_length=320"]
# Micro-batches by the groups that have rows of their own: 4 rows a step in any case.
BATCH = {
    1: ["train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2"],
    2: ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=2"],
}
FIGURE_ERROR = 1e-6
"""Relative, of logged figures: fp32 sums in another order (1.4e-7 measured)."""
DIVERGENCE_ERROR = 2e-5
"""Of the divergence from the base, in units of 0.01 nats: a difference of near equals (5.7e-6)."""
ADAPTER_ERROR = 1e-6
"""Relative RMS of what four steps made of the factors that begin at zero."""


def write_rows(path):
    """Write conversations of 60 to 400 tokens, with thinking in all and in two turns in some."""
    lines = []
    for number in range(7):
        thought = " ".join(f"{word * (number + 1)} follows" for word in range(4 + 9 * number))
        turns = [
            {"role": "user", "content": f"Continue {number}, and say why."},
            {"role": "assistant", "thinking": thought, "content": f"It is {number**3}."},
        ]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    base = tiny_checkpoint(folder / "base", seed=1, layers=2, experts=4, hidden=32, intermediate=64)
    # Shorter than a chunk of the longest row, longer than one of the shortest.
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "sliding_window": WINDOW}))
    rows = folder / "rows.jsonl"
    write_rows(rows)
    prompts = folder / "prompts.jsonl"
    asked = [{"prompt": "Why? " * n, "pattern": "a"} for n in (1, 9, 3)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in asked))
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        "lora: {rank: 4, expert_rank: 2}\n"
        f"data: {{train: {rows}, eval: {rows}, max_length: 512, "
        "channel_weights: {analysis: 0.5}}\n"
        f"train: {{output_dir: unused, max_steps: {STEPS}, learning_rate: 1e-3, save_steps: 2, "
        "eval_steps: 2, activation_checkpointing: none, adam_epsilon: 1e-4}\n"
        f"evaluation: {{prompts: {prompts}, max_new_tokens: 3, batch_size: 2, "
        f"drift: {{references: {rows}, max_references: 3}}}}\n"
    )
    return path


def overrides(recipe, name, *more, groups=1, each=1):
    found = [f"train.output_dir={recipe.parent / name}", *BATCH[groups], *more]
    if groups * each > 1:
        found += [f"distributed.num_processes={groups * each}"]
        found += [f"distributed.context_parallel={each}"]
    return found


@pytest.fixture(scope="module")
def runs(recipe, forked_python):
    """The folder of all runs."""

    def launch(ranks, *asked):
        ended = forked_python([SCRIPT, recipe, json.dumps(asked)], ranks=ranks, timeout=600)
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def of(name, *more, groups=1, each=1):
        return overrides(recipe, name, *more, groups=groups, each=each)

    def resumed(name, start, **table):
        return of(name, f"train.resume={recipe.parent / start / 'checkpoint-2'}", **table)

    launch(1, (False, of("one")), (False, of("one-packed", *PACKED)))
    launch(
        2,
        (False, of("cp2", each=2)),
        (False, of("cp2-packed", *PACKED, each=2)),
        (True, of("cp2-fsdp2", *PACKED, "train.activation_checkpointing=full", each=2)),
        (False, resumed("cp2-of-one", "one", each=2)),
        (False, resumed("cp2-again", "cp2", each=2)),
    )
    launch(
        4,
        (False, of("cp4-packed", *PACKED, each=4)),
        (False, of("dp2-cp2", groups=2, each=2)),
        (True, of("dp2-cp2-fsdp2", groups=2, each=2)),
        (False, resumed("cp4-of-cp2", "cp2", each=4)),
    )
    launch(1, (False, resumed("one-of-cp2", "cp2")))
    return recipe.parent


def figures(run, since=0):
    """Return what was logged but for times, rates and memory."""
    # The library's count of operations counts padding, which hangs on what shares a batch.
    left_out = ("_runtime", "_per_second", "_per_step", "memory_gib", "total_flos")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(left_out)}
        for line in lines
        if line["step"] > since
    ]


def error(actual, expected):
    """Return the relative RMS distance of what was trained: the B of all pairs, as one vector."""
    assert actual.keys() == expected.keys()
    names = [name for name in sorted(expected) if "lora_B" in name]
    ours, theirs = (
        torch.cat([adapter[name].double().flatten() for name in names])
        for adapter in (actual, expected)
    )
    assert theirs.norm() > 0
    return float((ours - theirs).norm() / theirs.norm())


def assert_equal_runs(runs, name, reference, since=0):
    ours, theirs = figures(runs / name, since), figures(runs / reference, since)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    assert any("loss_analysis" in line and "loss_final" in line for line in theirs)
    worst = {}
    for mine, other in zip(ours, theirs, strict=True):
        for key, value in other.items():
            kl = key.startswith("eval_kl")
            wrong = abs(mine[key] - value) / (max(abs(value), 1e-2) if kl else abs(value) or 1.0)
            worst[key] = max(worst.get(key, 0.0), wrong * (FIGURE_ERROR / DIVERGENCE_ERROR) ** kl)
    adapters = error(load_file(runs / name / FACTORS), load_file(runs / reference / FACTORS))
    print(
        f"\n{name} against {reference}: adapter {adapters:.1e}, figures",
        {key: f"{value:.1e}" for key, value in worst.items() if value},
    )
    assert all(math.isfinite(value) for value in worst.values())
    assert max(worst.values()) < FIGURE_ERROR, worst
    assert adapters < ADAPTER_ERROR


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("cp2", "one"),
        ("dp2-cp2", "one"),
        ("dp2-cp2-fsdp2", "one"),
        ("cp2-packed", "one-packed"),
        ("cp2-fsdp2", "one-packed"),
        ("cp4-packed", "one-packed"),
    ],
)
def test_figures_and_adapter_are_those_of_one_process(runs, name, reference):
    assert_equal_runs(runs, name, reference)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("cp2-of-one", "one"), ("cp4-of-cp2", "cp2"), ("one-of-cp2", "cp2")],
)
def test_a_run_is_continued_with_rows_shared_by_others(runs, name, reference):
    assert_equal_runs(runs, name, reference, since=2)
    record = json.loads((runs / name / "run.json").read_text())
    assert "context_parallel" in {change["name"] for change in record["changes"]}


def test_a_run_is_continued_bit_for_bit_by_as_many(runs):
    assert figures(runs / "cp2-again", since=2) == figures(runs / "cp2", since=2)
    ours, theirs = (load_file(runs / name / FACTORS) for name in ("cp2-again", "cp2"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_layers_and_loads_are_those_of_one_process(runs):
    for name, reference in (("dp2-cp2", "one"), ("cp4-packed", "one-packed")):
        ours, theirs = (
            [json.loads(line) for line in (runs / run / "layers.jsonl").read_text().splitlines()]
            for run in (name, reference)
        )
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["expert_load"] == other["expert_load"]
            for kind in ("attention", "experts"):
                assert mine["grad_norm"][kind] == pytest.approx(other["grad_norm"][kind], rel=1e-4)


def test_answers_between_steps_are_those_of_one_process(runs):
    ours, theirs = (
        json.loads((runs / run / "evaluation" / f"step-{STEPS}.json").read_text())
        for run in ("dp2-cp2-fsdp2", "one")
    )
    assert len(ours["samples"]) == 3
    assert {**ours, "drift": None} == {**theirs, "drift": None}


def test_the_record_counts_every_token_once(runs):
    ours, theirs = (json.loads((runs / run / "run.json").read_text()) for run in ("dp2-cp2", "one"))
    assert ours["tokens"] == theirs["tokens"] and ours["tokens"]["trained"] > 0
    assert ours["fingerprint"]["batch"] == theirs["fingerprint"]["batch"] == 4
    assert ours["fingerprint"]["steps"] == theirs["fingerprint"]["steps"]
    assert ours["fingerprint"]["context_parallel"] == 2 and ours["environment"]["processes"] == 4
