import json
import re

import pytest
from safetensors.torch import load_file

MATHS = [("3 + 3?", "Sum.", "6"), ("1 + 1?", "Add.", "two")]
WORDS = [
    ("Opposite of up?", "Direction words.", "down"),
    ("Say hello", "Greeting", "Hello there!"),
    ("Days in a week?", "Calendars.", "7"),
]


def write_rows(path, rows):
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer, "thinking": thought},
                ]
            }
        )
        for question, thought, answer in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def held_out(tmp_path_factory):
    """Two held-out files that are not the training rows."""
    folder = tmp_path_factory.mktemp("held-out")
    write_rows(folder / "maths.jsonl", MATHS)
    write_rows(folder / "Words-1.jsonl", WORDS)
    return folder / "maths.jsonl", folder / "Words-1.jsonl"


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """Prompts with answers that no tiny model gives."""
    path = tmp_path_factory.mktemp("asked") / "prompts.jsonl"
    path.write_text('{"prompt": "2 + 2?", "answer": "4"}\n', encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def overfitting(held_out):
    """Overrides of a run whose held-out loss is lowest at step 3 of the first 5.

    The losses go 11.5, 12.6, 11.4, 12.2, 13.0 (measured with torch 2.13 on a CPU).
    """
    maths, words = held_out
    return (
        f"data.eval=[{maths},{words}]",
        "train.max_steps=14",
        "train.learning_rate=0.1",
        "train.lr_scheduler_type=constant",
        "train.eval_steps=1",
        "train.save_steps=2",
        "train.save_total_limit=1",
        "train.keep_best=eval_loss",
        "train.early_stopping.patience=2",
    )


@pytest.fixture(scope="session")
def left():
    """Return a function from a run to what a repetition of it has to leave, bit for bit."""

    def read(run):
        record = json.loads((run / "run.json").read_text())
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        timeless = re.compile("second|runtime|memory|flos")
        lines = {}
        for row in rows:
            kind = "eval_loss" if "eval_loss" in row else "loss" if "loss" in row else "other"
            figures = {n: v for n, v in row.items() if not timeless.search(n)}
            if kind != "other":
                lines.setdefault((row["step"], kind), figures)
        adapter = load_file(run / "adapter" / "adapter_model.safetensors")
        return {
            "status": record["status"],
            "steps": record["steps"],
            "best": record.get("best"),
            "early_stopping": record.get("early_stopping"),
            "eval_loss": record["eval_loss"],
            "step": json.loads((run / "adapter" / "manifest.json").read_text())["step"],
            "adapter": {name: tensor.numpy().tobytes() for name, tensor in adapter.items()},
            "lines": lines,
        }

    return read
