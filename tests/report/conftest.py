"""Runs made of files alone: what the page reads, without training anything."""

import json

import pytest

from gptoss_tune.recipe import load_recipe
from gptoss_tune.testing.tiny import tiny_config


def preference_figures(step, steps, name):
    """Return a line's metrics of a preference run."""
    done = step / steps
    figures = {
        **{"loss": 0.69 * (1 - 0.8 * done), "reward_margin": 2.5 * done, "pairs": 8.0 * step},
        **{"reward_chosen": 0.5 * done, "reward_rejected": -2 * done},
        **{f"reward_margin_{channel}": 2.5 * done * share for channel, share in SHARES.items()},
        **{"logp_chosen": -1.5 + 0.1 * done, "logp_rejected": -1.6 - 0.4 * done},
    }
    if name != "kto":
        figures["reward_accuracy"] = min(1.0, 0.5 + 0.6 * done)
    if name not in ("simpo", "orpo"):
        figures |= {"logp_drift_chosen": 0.1 * done, "logp_drift_rejected": -0.4 * done}
        figures |= {f"reference_kl{name}": 0.02 * done for name in ("", "_analysis", "_final")}
    if name == "kto":
        figures |= {"kl_estimate": 0.4 * done}
    return figures


def reward_figures(step, steps):
    """Return a line's metrics of a run that learns from rewards."""
    done = step / steps
    return {
        **{"reward": 0.2 + 0.7 * done, "reward_answer": 0.1 + 0.8 * done, "reward_format": 0.9},
        **{"reward_std": 0.4 - 0.3 * done, "groups_without_signal": 0.1 + 0.5 * done},
        **{"episode_tokens": 80 - 30 * done, "cut_off_share": 0.3 * (1 - done)},
        **{"entropy": 1.2 - done, "mismatch_kl": 2e-5 * (1 + done), "mismatch_max": 0.02},
        **{"importance_weight_max": 1.02, "clipped_share": 0.0, "importance_capped_share": 0.001},
        **{
            "tool_calls": 1.4,
            "failed_calls": 0.2 * (1 - done),
            "failed_rewards": 0,
            "resampled": 0,
        },
        **{"rollout_seconds": 3.0, "rollout_tokens_per_second": 900.0, "rollouts_per_second": 11.0},
    }


def episode(reward, *, final="7", split="train", **facts):
    """Return an episode of ``rollouts/step-N.jsonl`` in which a tool was called."""
    said = [
        ("user", None, None, "What does a pear cost?"),
        ("assistant", "analysis", None, f"I look it up, {reward}."),
        ("assistant", "commentary", "functions.price", '{"item": "pear"}'),
        ("functions.price", "commentary", "assistant", "7 euros"),
        ("assistant", "final", None, final),
    ]
    names = ("role", "channel", "recipient", "content")
    rewards = {"total": reward, "components": {"answer": reward, "format": 1.0}, "failed": {}}
    usual = {"task": 3, "source": "prompts.jsonl:4", "index": 0, "ended": "answer", "tokens": 41}
    usual |= {"tool_calls": 1, "failed_calls": 0, "seconds": 0.5, "faults": [], "split": split}
    messages = [dict(zip(names, one, strict=True)) for one in said]
    return {**usual, "rewards": rewards, "messages": messages, **facts}


def write_episodes(run, step, episodes):
    """Write the episodes of a step."""
    (run / "rollouts").mkdir(exist_ok=True)
    lines = "".join(json.dumps(one) + "\n" for one in episodes)
    (run / "rollouts" / f"step-{step}.jsonl").write_text(lines)


SHARES = {"analysis": 0.3, "commentary": 0.0, "final": 0.7}


def preference_pair(number, before, after, sides=("chosen", "rejected")):
    """Return a pair of ``pairs.json``, by its margins before and after."""
    pair = {"source": f"pairs.jsonl:{number}", "prompt": f"question {number}"}
    for side, sign in zip(("chosen", "rejected"), (0.5, -0.5), strict=True):
        if side in sides:
            said = {"analysis": f"thought {number} {side}", "commentary": None}
            pair[side] = {
                "text": {**said, "final": f"answer {number} {side}"},
                "tokens": 20,
                "before": -40 + sign * before,
                "after": -40 + sign * after,
            }
    return pair


def write_pairs(run, pairs, *, reference="base", split="eval"):
    """Write the pairs of a run before and after."""
    content = {"reference": reference, "split": split, "pairs": pairs}
    (run / "pairs.json").write_text(json.dumps(content))


def figures_of(step, steps, method):
    """Return the metrics that a method has beside those of supervised fine-tuning."""
    if method == "grpo":
        return reward_figures(step, steps)
    return preference_figures(step, steps, method)


def write_run(folder, *, steps=20, layers=3, experts=4, base=None, method="sft", **changes):
    """Write the files of a finished run; ``changes`` replaces entries of its record."""
    folder.mkdir(parents=True)
    recipe_file = folder.parent / f"{folder.name}.yaml"
    recipe_file.write_text(
        f"model: {{name_or_path: {base or 'openai/gpt-oss-20b'}}}\n"
        f"data: {{train: data/tiny/train.jsonl}}\nmethod: {{name: {method}}}\n"
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
            if method != "sft":
                row = {name: row[name] for name in row if not name.startswith("loss_")}
                row |= figures_of(step, steps, method)
            stream.write(json.dumps(row) + "\n")
        held_out = {"loss": 0.75, "loss_final": 0.7}
        if method == "grpo":
            named = ("reward", "reward_answer", "reward_format", "episode_tokens")
            held_out = {name: figures_of(steps, steps, method)[name] for name in named}
        elif method != "sft":
            held_out = preference_figures(steps, steps, method)
        last = {f"eval_{name}": value for name, value in held_out.items()}
        stream.write(json.dumps({"step": steps, **last}) + "\n")
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
def make_preference_run(tmp_path):
    """Return a function that writes a preference run with pairs, and the functions it is made of.

    ``make.pair`` returns a pair of ``pairs.json``, ``make.pairs`` writes some into a run.
    """

    def make(name="run", method="dpo", **options):
        run = write_run(tmp_path / name, method=method, **options)
        one, other = ("chosen",), ("rejected",)
        sides = [one, other] * 2 if method == "kto" else [(*one, *other)] * 4
        margins = [(-2, 3), (1, 4), (2, -1), (-3, -1)]
        found = [preference_pair(n, *ends, sides[n]) for n, ends in enumerate(margins)]
        write_pairs(run, found, reference="none" if method in ("simpo", "orpo") else "base")
        return run

    make.pair, make.pairs = preference_pair, write_pairs
    return make


@pytest.fixture
def make_rewarded_run(tmp_path):
    """Return a function that writes a run of grpo with episodes, and what it is made of.

    ``make.episode`` returns a line of a file of episodes, ``make.episodes`` writes one.
    """

    def make(name="run", **options):
        run = write_run(tmp_path / name, method="grpo", **options)
        write_episodes(run, 1, [episode(n / 4, final=f"early {n}") for n in range(5)])
        held_out = [episode(0.95, final="held out", split="eval")]
        write_episodes(run, 10, [episode(n / 4, final=f"midway {n}") for n in range(5)])
        late = [episode(0.5 + n / 8, final=f"late {n}") for n in range(5)]
        write_episodes(run, 20, [*late, *held_out])
        return run

    make.episode, make.episodes = episode, write_episodes
    return make


@pytest.fixture
def tiny_base(tmp_path):
    """A folder with the configuration of the tiny model alone, which is all a plan reads."""
    folder = tmp_path / "tiny-base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    return folder
