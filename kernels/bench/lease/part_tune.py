"""Tiles and engines on this card; what is found is written back at once and taken from here on."""

from __future__ import annotations

import os
from pathlib import Path

import tune
from lines import Lines, dry
from measure import SHAPES

TOKENS, RANK, ENGINE_TOKENS = 16384, 16, (512, 2048, 16384)


def run(name: str, lines: Lines) -> None:
    shape = SHAPES["least" if dry() else "gpt-oss-20b"]
    tokens, rank, runs = (4, 4, 1) if dry() else (TOKENS, RANK, 7)
    best, only = [], "store" if dry() else ""
    for figure in tune.tile_figures(shape, tokens, rank, runs, 10**6, only):
        lines.say(**figure)
        if "best" in figure:
            best.append(figure["best"])
            _keep(shape, tokens, best, None)
    engines = tune.tune_engines(shape, rank, runs, ENGINE_TOKENS)
    lines.say(engines=engines)
    _keep(shape, tokens, best, engines)


def _keep(shape: tune.Shape, tokens: int, best: list[dict], engines: dict[str, int] | None) -> None:
    """Write the table for who comes back, and for the parts after this one.

    Without engines until they were measured: a part may be killed in between, and an empty entry
    would say that no other engine is ever the faster one.
    """
    folders = [Path(os.environ["OUT"])] + ([] if dry() else [tune.tuned_folder()])
    for folder in folders:
        tune.write(folder, shape, tokens, best, engines)
