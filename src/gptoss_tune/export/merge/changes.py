"""What adapters do to a base other than by factors, and which adapters have no sum.

Whole tensors, rows of the embedding and biases that an adapter holds take the place of the base's
before anything is added: ``changed_base`` returns a base that reads them from the adapter. What
merges, converts or computes logits reads that base and knows nothing of where a tensor comes from.

Factors add up; what replaces a tensor, or brings its rows to a length (DoRA), does not. Half of a
replacement, or two of them, would be something that nobody trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.files.paths import inside
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter_config import ADAPTER_WEIGHTS
from gptoss_tune.weights.layouts.experts import StackedExperts
from gptoss_tune.weights.safetensors_file import SafetensorsFile, TensorEntry, TensorSpec


def changed_base(base: Checkpoint, adapters: Sequence[WeightedAdapter]) -> Checkpoint:
    """Return ``base`` with the tensors that ``adapters`` replace, or add to without factors.

    Args:
        base: The checkpoint that the adapters were trained on.
        adapters: What is merged; where none does more than add factors, the base is returned.

    Raises:
        CheckpointError: They have no sum.
    """
    _refuse_no_sum(adapters)
    files: dict[str, SafetensorsFile] = {}
    for each in adapters:
        for name, whole in each.adapter.whole.items():
            before = files.get(name) or base.source_of(name)
            if whole.kind == "replace":
                files[name] = _named(each, whole.stored, name)
            elif whole.kind == "rows":
                files[name] = _Computed(before, name, _rows(each, whole.stored, whole.rows))
            else:
                scaling = whole.scaling * each.weight
                files[name] = _Computed(before, name, _sum(each, whole.stored, scaling))
    return base.with_files(files) if files else base


def _refuse_no_sum(adapters: Sequence[WeightedAdapter]) -> None:
    """Refuse weights of what has none, and two adapters of which one replaces the other's tensor.

    Raises:
        CheckpointError: Names the tensor.
    """
    for position, each in enumerate(adapters):
        for name, what in _replaced(each).items():
            if each.weight != 1:
                raise CheckpointError(
                    f"{each.adapter.path}: its weight in the sum is {each.weight:g}, and it holds "
                    f"{what} {name}, of which there is no share; merge it with the weight 1"
                )
            for other in (*adapters[:position], *adapters[position + 1 :]):
                if name in {*_replaced(other), *_added(other)}:
                    raise CheckpointError(
                        f"{each.adapter.path}: holds {what} {name}, which "
                        f"{other.adapter.path} changes too; the two have no sum, merge one alone "
                        "or train them as one adapter"
                    )


def _replaced(each: WeightedAdapter) -> dict[str, str]:
    """Return the tensors of which an adapter fixes the values, with how."""
    wholes = each.adapter.whole.items()
    found = {n: "trained values of" for n, whole in wholes if whole.kind != "add"}
    dora = [module for module, target in each.adapter.targets.items() if target.dora]
    return found | {f"{module}.weight": "DoRA's row lengths of" for module in dora}


def _added(each: WeightedAdapter) -> set[str]:
    """Return the tensors that an adapter adds to."""
    biases = {n for n, whole in each.adapter.whole.items() if whole.kind == "add"}
    return biases | {f"{module}.weight" for module in each.adapter.targets}


def _file(each: WeightedAdapter) -> SafetensorsFile:
    """Return the adapter's file opened anew, with the names that the adapter gave the tensors."""
    folder, known = each.adapter.path, each.adapter.file
    file = SafetensorsFile(inside(folder, ADAPTER_WEIGHTS, f"{folder}: has"))
    file.entries = dict(known.entries)
    return file


def _named(each: WeightedAdapter, stored: str, name: str) -> SafetensorsFile:
    """Return a file that holds the adapter's tensor ``stored`` under the name ``name``."""
    file = _file(each)
    file.entries = {stored: file.entries[stored]}
    file.rename({stored: name})
    return file


def _rows(
    each: WeightedAdapter, stored: str, rows: tuple[int, ...]
) -> Callable[[Tensor, int], Tensor]:
    trained = each.adapter.file.read(stored).float()

    def replaced(weight: Tensor, start: int) -> Tensor:
        """Return the rows from ``start`` on with the trained ones among them."""
        for place, row in enumerate(rows):
            if start <= row < start + weight.shape[0]:
                weight[row - start] = trained[place]
        return weight

    return replaced


def _sum(each: WeightedAdapter, stored: str, scaling: float) -> Callable[[Tensor, int], Tensor]:
    trained = each.adapter.file.read(stored).float() * scaling

    def added(weight: Tensor, start: int) -> Tensor:
        """Return the values from ``start`` on with the trained ones added."""
        return weight.add_(trained[start : start + weight.shape[0]])

    return added


class _Computed(SafetensorsFile):
    """One tensor of another file, changed as it is read; fp32, which holds both exactly.

    Its bytes lie nowhere: a merge rounds what it reads to the result's dtype, and copies nothing.
    """

    def __init__(
        self,
        before: SafetensorsFile | StackedExperts,
        name: str,
        change: Callable[[Tensor, int], Tensor],
    ) -> None:
        self.path, self._before, self._change = before.path, before, change
        self._descriptor = None
        self.metadata = {}
        shape = before.entries[name].spec.shape
        self.entries = {name: TensorEntry(TensorSpec(name, torch.float32, shape), 0)}

    def read(self, name: str) -> Tensor:
        """Return the changed tensor in memory of its own."""
        return self._change(self._before.read(name).float(), 0)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return ``tensor[start:stop]`` along the first axis."""
        return self._change(self._before.read_rows(name, start, stop).float(), start)

    def prefetch(self, name: str) -> None:
        """Ask the kernel to read ahead what is changed."""
        self._before.prefetch(name)

    def close(self) -> None:
        """Close the file that is changed; a later read opens it again."""
        self._before.close()
