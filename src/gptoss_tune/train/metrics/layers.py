"""``RUN/layers.jsonl``: what each layer's adapters and experts did, at a bounded number of steps.

A line per step that is kept: the norm of the gradients of a layer's adapters, before clipping, on
attention and on experts, and at fewer steps how many tokens each expert got. ``metrics.jsonl`` has
one figure of the whole model for both, in which one silent layer, or one expert that takes over,
does not show.

The load of step 1 stands on a line of its own: no update has been made, so the routers see what
the base computes (or the adapter that ``lora.init_from`` names), and a report measures the drift
from there. Nothing is read from the device but at step 1 and when a line is logged anyway.

L layers, E experts.
"""

from __future__ import annotations

import re
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptoss_tune.distributed import sum_over_ranks
from gptoss_tune.files.strict_json import to_text
from gptoss_tune.model.parallel.sharding import share_of
from gptoss_tune.run.jsonl import append_line, keep_lines_until, open_lines

MOST_NORMS = 1000
"""Lines with gradient norms at most, spread over the run."""
MOST_LOADS = 64
"""Lines with the load of all experts at most, spread over the run."""
KINDS = ("attention", "experts")
_LAYER = re.compile(r"\blayers\.(\d+)\.")


class LayerFigures:
    """Measure a run's layers and write them down; rank 0 writes, all ranks have to ask."""

    def __init__(self, path: Path, *, layers: int, logging_steps: int, max_steps: int) -> None:
        """Write to ``path``.

        Args:
            path: The file, ``RUN/layers.jsonl``.
            layers: Layers of the model.
            logging_steps: Steps between two lines of metrics.
            max_steps: Steps of the whole run.
        """
        self._path, self._layers, self._every = path, layers, logging_steps
        self._lines, self._last = max(1, max_steps // logging_steps), max_steps
        self._norms: Tensor | None = None
        self._stream: FileIO | None = None

    def open(self, step: int) -> None:
        """Drop lines past the resumed ``step`` and go on writing; rank 0 does."""
        keep_lines_until(self._path, step)
        self._stream = open_lines(self._path)

    def on_gradients(self, model: nn.Module, step: int) -> None:
        """Take the norms of a step's gradients where its line will hold them."""
        if self._is_kept(step, MOST_NORMS):
            self._norms = layer_norms(model, self._layers)

    def first_load(self, counts: Tensor) -> None:
        """Write the load of step 1, unless its line of metrics will.

        Args:
            counts: ``[L, E]`` of this rank.
        """
        if self._every > 1:
            self._write({"step": 1, "expert_load": _whole(sum_over_ranks(counts)), "load_steps": 1})

    def log(self, step: int, load: Tensor | None, load_steps: int) -> None:
        """Write the line of a logged step.

        Args:
            step: Its number.
            load: ``[L, E]`` tokens by layer and expert since the last log, of all ranks.
            load_steps: Steps since then; a checkpoint between two lines has one of its own.
        """
        line: dict[str, Any] = {"step": step}
        if self._norms is not None:
            line["grad_norm"] = dict(zip(KINDS, _rounded(self._norms), strict=True))
            self._norms = None
        if load is not None and self._is_kept(step, MOST_LOADS):
            line |= {"expert_load": _whole(load), "load_steps": load_steps}
        if len(line) > 1:
            self._write(line)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _is_kept(self, step: int, most: int) -> bool:
        """Say whether a step's line is among ``most`` spread over the run, or its first or last."""
        number, rest = divmod(step, self._every)
        stride = -(-self._lines // most)
        return step == self._last or (rest == 0 and (number % stride == 0 or number == 1))

    def _write(self, line: dict[str, Any]) -> None:
        if self._stream is not None:
            append_line(self._stream, to_text(line))


def layer_norms(model: nn.Module, layers: int) -> Tensor:
    """Return the norm of each layer's adapter gradients; it stays on the device.

    Args:
        model: Its gradients are those of the whole step.
        layers: L.

    Returns:
        ``[2, L]`` fp64: attention and experts; NaN where a layer has no adapter with a gradient.
    """
    squares, places, sharded = [], [], False
    for name, parameter in model.named_parameters():
        found = _LAYER.search(name)
        if parameter.grad is None or found is None or "lora_" not in name:
            continue
        gradient = share_of(parameter.grad)
        sharded |= gradient is not parameter.grad
        squares.append(torch.linalg.vector_norm(gradient, dtype=torch.float32).double() ** 2)
        places.append((".experts." in name) * layers + int(found[1]))
    total = torch.full((2 * layers,), torch.nan, dtype=torch.float64)
    if squares:
        total = total.to(squares[0].device)
        index = torch.tensor(places, device=total.device)
        total[index] = 0.0
        total.index_add_(0, index, torch.stack(squares))
    if sharded:
        total = sum_over_ranks(total)
    return total.sqrt().view(2, layers)


def _rounded(values: Tensor) -> list[list[float | None]]:
    """Return rows of figures with 5 significant digits; JSON has no NaN."""
    rows = values.cpu().tolist()
    return [[float(f"{v:.5g}") if abs(v) < float("inf") else None for v in row] for row in rows]


def _whole(counts: Tensor) -> list[list[int]]:
    return counts.round().long().cpu().tolist()
