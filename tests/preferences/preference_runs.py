"""Rows of one rule, and what a run of preferences leaves in its folder."""

import json
import shutil

from safetensors.torch import load_file

PEOPLE = ["Anna", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana"]
THINGS = ["tea", "cake", "soup", "bread"]


def offer(person, thing, number):
    thought = {"thinking": f"{person} asks."} if number % 2 else {}
    effort = {} if number % 2 else {"reasoning_effort": "low"}
    yes, no = ("Yes, gladly.", "No, never.") if number % 3 else ("Gladly, yes.", "Never, no.")
    return {
        "prompt": f"{person} offers {thing}.",
        "chosen": [{"role": "assistant", "content": yes, **thought}],
        "rejected": [{"role": "assistant", "content": no, **thought}],
        **effort,
    }


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row], [row for row in rows if "eval_loss" in row]


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def unfinish(run):
    """Leave a run as a kill before its end does."""
    shutil.rmtree(run / "adapter")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
