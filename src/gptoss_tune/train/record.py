"""The record beside the outputs: what was run, on what, with which versions.

``RUN/recipe.yaml`` is the resolved recipe, which is a recipe again; ``RUN/run.json`` holds the
facts around it: versions, commit, hardware, the base's fingerprint, and how the run ended.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gptoss_tune import __version__
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.strict_json import read_object, refuse_other_kinds
from gptoss_tune.report.page import write_report
from gptoss_tune.train.commit import git_commit

RECORD = "run.json"
RECIPE = "recipe.yaml"
_LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "openai-harmony",
    "safetensors",
)
# What is looked up in a record that another process wrote, or another person.
_KINDS: dict[str, Any] = {
    "run_id": str,
    "status": str,
    "fingerprint": {},
    "drift": [{"step": int, "name": str}],
    "micro_batch": {"per_device_train_batch_size": int, "gradient_accumulation_steps": int},
    "base": {"name": str, "fingerprint": {"config": str, "weights": str}},
    "data": [{"path": str, "sha256": str}],
    "environment": {"libraries": {}, "processes": int},
    "hardware": {},
    "verification": [{}],
}


def environment() -> dict[str, Any]:
    """Return versions, commit and hardware of this process."""
    return {
        "gptoss_tune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "git_commit": git_commit(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def read_record(run: Path) -> dict[str, Any]:
    """Return ``RUN/run.json``, or nothing where there is none yet.

    Raises:
        CheckpointError: It is not strict JSON, or holds something else than a record.
    """
    path = run / RECORD
    try:
        record = read_object(path)
    except FileNotFoundError:
        return {}
    refuse_other_kinds(path, record, _KINDS)
    return record


def update_record(run: Path, **facts: Any) -> dict[str, Any]:
    """Merge ``facts`` into ``RUN/run.json`` and return the whole record."""
    record = read_record(run)
    record.update(facts, updated=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    write_text(run / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def note_verification(sources: list[str], command: str, verdict: dict[str, Any]) -> None:
    """Add what ``merge`` or ``verify`` found to the cards of the runs that were exported.

    Args:
        sources: What was exported: runs, their ``adapter`` folders, or adapters without a card.
        command: Which command looked.
        verdict: ``Verification.as_dict()``.
    """
    kept = {key: verdict[key] for key in ("folder", "passed", "checks")}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for source in map(Path, sources):
        run = source if (source / RECORD).is_file() else source.parent
        # A parent folder counts for a run's own adapter only.
        if (run / RECORD).is_file() and (run == source or source.name == "adapter"):
            earlier = read_record(run).get("verification") or []
            noted = {"command": command, "time": now, **kept}
            update_record(run, verification=[*earlier, noted])


def report(run: Path, console: Console) -> None:
    """Write ``RUN/report.html``; a page that cannot be written costs the run nothing."""
    try:
        path = write_report([run])
    except GptossTuneError as error:
        console.print(f"no report was written: {error}", soft_wrap=True, markup=False)
    else:
        console.print(f"report: {path}", soft_wrap=True, highlight=False)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
