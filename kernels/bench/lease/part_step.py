"""Whole training steps of 20b and 120b on packed documents of 4,096 tokens."""

from __future__ import annotations

import gc

import torch
from lines import Lines, dry
from measure import SHAPES, failure
from step import DEFAULT_RANK, Step, figures

WHOLE_120B_BYTES = 100 * 2**30
"""A card with less holds 12 of the 36 layers, and the step is that of 12."""


def run(name: str, lines: Lines) -> None:
    for model, settings in _steps(name):
        try:
            for figure in figures(SHAPES[model], settings, *((1, 0) if dry() else (5, 30))):
                lines.say(**figure)
        except torch.OutOfMemoryError as error:
            lines.say(model=model, checkpointing=settings.checkpointing, not_run=failure(error))
        gc.collect()  # wrapped modules refer to one another
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _steps(name: str) -> list[tuple[str, Step]]:
    if dry():
        return [("tiny", Step(1, 24, 10, 4, "torch", checkpointing="full"))]
    if name == "step20b":
        modes = ("none", "full")
        return [("gpt-oss-20b", Step(24, 16384, 4096, checkpointing=mode)) for mode in modes]
    whole = torch.cuda.get_device_properties(0).total_memory > WHOLE_120B_BYTES
    rank = DEFAULT_RANK["gpt-oss-120b"]
    return [("gpt-oss-120b", Step(36 if whole else 12, 8192, 4096, rank, checkpointing="full"))]
