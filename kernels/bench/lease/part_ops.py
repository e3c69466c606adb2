"""Attention with sinks, and the loss: ours beside the others."""

from __future__ import annotations

import ops_attention
import ops_loss
from lines import Lines, dry


def run(name: str, lines: Lines) -> None:
    runs = 1 if dry() else 7
    if name == "attention":
        tokens = [ops_attention.CPU_TOKENS] if dry() else [4096, 16384]
        # flex compiles for longer than all others take together.
        figures = ops_attention.figures(tokens, runs, leave_out=("flex",))
    else:
        figures = ops_loss.figures([ops_loss.CPU_ROWS] if dry() else [4096, 16384], runs)
    for figure in figures:
        lines.say(**figure)
