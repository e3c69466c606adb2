"""Rows of answers: as a rendered data set has them, for a model of 97 words; and recipes of them.

Those of ``preference_recipe`` are files for the tiny base: 11 rows of one rule, and 3 held out.
"""

import json

import numpy as np
import pytest
from preference_runs import PEOPLE, THINGS, offer, written

from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train

FINAL, ANALYSIS = 3, 1


def document(generator, prompt, answer, analysis=0):
    """Return ids, weights and channels: a prompt, then thoughts and an answer, all counted."""
    shared, own = prompt, generator.integers(0, 97, answer)
    ids = np.concatenate((shared, own))
    weights = np.zeros(len(ids), np.float32)
    weights[len(shared) :] = 1
    channels = np.zeros(len(ids), np.int8)
    channels[len(shared) :] = FINAL
    channels[len(shared) : len(shared) + analysis] = ANALYSIS
    return ids, weights, channels


def pack(samples):
    """Return a row of samples: each a weight and a list of (sign, document)."""
    row = {name: [] for name in ("input_ids", "loss_weights", "channels", "position_ids")}
    row |= {"branches": [], "samples": [], "sources": []}
    for number, (weight, documents) in enumerate(samples):
        for sign, (ids, weights, channels) in documents:
            row["input_ids"] += ids.tolist()
            row["loss_weights"] += (weights * weight).tolist()
            row["channels"] += channels.tolist()
            row["position_ids"] += list(range(len(ids)))
            row["branches"].append(sign)
            row["samples"].append(number)
            row["sources"].append(0)
    return row | {"length": len(row["input_ids"])}


@pytest.fixture
def pair_samples():
    """Return pairs of several shapes: thoughts, two documents in a branch, a weight."""
    draw = np.random.default_rng(4)

    def pair(prompt, chosen, rejected, weight=1.0, turns=1):
        asked = draw.integers(0, 97, prompt)
        documents = [(1, document(draw, asked, *chosen)) for _ in range(turns)]
        return weight, [*documents, (-1, document(draw, asked, *rejected))]

    return [
        pair(5, (7, 3), (4, 2)),
        pair(9, (1,), (6,), weight=0.5),
        pair(3, (4, 2), (11,), turns=2),
        pair(12, (8,), (8, 5), weight=2.0),
    ]


@pytest.fixture
def labelled_samples():
    draw = np.random.default_rng(5)
    signs = (1, -1, -1, 1, -1)
    return [
        (1.0 + (n == 2), [(s, document(draw, draw.integers(0, 97, 3 + n), 4 + n))])
        for n, s in enumerate(signs)
    ]


@pytest.fixture
def packed_row():
    return pack


def answered(number, side):
    said = {"chosen": "Yes, gladly" + ", yes" * (number % 4), "rejected": "No" * (number % 3 + 1)}
    thought = {"thinking": f"Number {number}."} if number % 2 else {}
    return [{"role": "assistant", "content": said[side], **thought}]


def pair(number):
    """Return a pair; lengths differ, and every second has thoughts."""
    effort = {} if number % 2 else {"reasoning_effort": "low"}
    prompt = {"prompt": "Please? " * (number % 3 + 1) + str(number)}
    return {**prompt, **{s: answered(number, s) for s in ("chosen", "rejected")}, **effort}


def label(number):
    """Return one answer of the pair, most are good ones: KTO's KL term becomes positive."""
    side = "rejected" if number % 4 == 3 else "chosen"
    row = pair(number)
    kept = {name: row[name] for name in ("prompt", "reasoning_effort") if name in row}
    return {**kept, "completion": row[side], "label": side == "chosen"}


@pytest.fixture(scope="session")
def preference_recipe(base):
    """Return a function that writes data and recipe of ``dpo`` or ``kto`` into a folder."""

    def write(folder, method):
        make = label if method == "kto" else pair
        files = {}
        for split, numbers in (("train", range(11)), ("eval", range(11, 14))):
            files[split] = folder / f"{method}-{split}.jsonl"
            files[split].write_text("".join(json.dumps(make(n)) + "\n" for n in numbers))
        more = "beta: 0.5" if method == "kto" else "sft_weight: 0.2"
        path = folder / f"{method}.yaml"
        path.write_text(
            f"""
model: {{name_or_path: {base}, dtype: float32}}
lora: {{rank: 4, expert_rank: 2}}
method: {{name: {method}, {more}}}
data: {{train: {files["train"]}, eval: {files["eval"]}, max_length: 512}}
guard: {{check_steps: 0}}
train:
  output_dir: {folder / "unnamed"}
  max_steps: 4
  save_steps: 2
  eval_steps: 2
  save_total_limit: 3
  learning_rate: 5e-3
  activation_checkpointing: none
"""
        )
        return path

    return write


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory):
    """Rendered data and references of these tests alone: some of them look into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def preference_data(tmp_path_factory):
    """Pairs and labelled answers of one rule; those held out are about other people."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = [
        offer(who, what, n + m) for n, who in enumerate(PEOPLE) for m, what in enumerate(THINGS)
    ]
    labels = []
    for n, row in enumerate(rows):
        side = ("chosen", "rejected")[n % 2]
        labels.append({"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"})
    return {
        "pairs": written(folder / "pairs.jsonl", rows[:24]),
        "pairs_eval": written(folder / "pairs_eval.jsonl", rows[24:]),
        "labels": written(folder / "labels.jsonl", labels[:24]),
        "labels_eval": written(folder / "labels_eval.jsonl", labels[24:]),
    }


@pytest.fixture(scope="module")
def recipe_of(base, preference_data, module_cache, tmp_path_factory):
    """Return a function from a method and overrides to a recipe with a folder of its own."""

    def make(method, *overrides, kind="pairs", folder=None):
        folder = folder or tmp_path_factory.mktemp(method)
        path = folder / "recipe.yaml"
        rows, held_out = preference_data[kind], preference_data[f"{kind}_eval"]
        path.write_text(
            f"""
model: {{name_or_path: {base}, dtype: float32}}
lora: {{rank: 4, expert_rank: 2}}
method: {{name: {method}}}
data: {{train: {rows}, eval: {held_out}, max_length: 640, packing: true}}
train:
  output_dir: {folder / "run"}
  max_steps: 8
  per_device_train_batch_size: 2
  learning_rate: 1e-2
  activation_checkpointing: none
"""
        )
        return load_recipe(path, overrides)

    return make


@pytest.fixture(scope="module")
def dpo(recipe_of):
    """One run of DPO that was never stopped, with checkpoints."""
    kept = ["train.save_steps=3", "train.save_total_limit=5"]
    recipe = recipe_of("dpo", *kept, "method.sft_weight=0.2")
    summary = train(recipe)
    return recipe, summary.folder
