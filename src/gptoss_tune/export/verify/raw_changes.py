"""The changes of an adapter straight from its file, by each layout's own definition, to verify by.

None of this goes through the code that merges: a factor that is read wrong there is not read wrong
here in the same way. Four layouts: stacks and linear layers as PEFT defines them, embeddings,
layers of single experts, and DoRA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter_keys import PREFIX


class RawFactors:
    """One target's factors straight from the file, by PEFT's own definition of the change.

    ``delta[e] = scaling * einsum("o r e, e r i -> e o i", B, A)`` with A ``[E*r, in]`` seen as
    ``[E, r, in]`` and B ``[out, r*E]`` seen as ``[out, r, E]``.

    See peft, ``ParamWrapper.get_delta_weight``.
    """

    def __init__(self, each: WeightedAdapter, module: str, device: torch.device) -> None:
        """Read the factors of ``module`` that are not read expert by expert."""
        target = each.adapter.targets[module]
        self._a_name = f"{target.key}.lora_A.weight"
        self._file, self._rank = each.adapter.file, target.rank
        self._b = self._file.read(f"{target.key}.lora_B.weight").float().to(device)
        self._experts, self._device = target.held, device
        self._place = None if target.chosen is None else {e: n for n, e in enumerate(target.chosen)}
        self.scaling = target.scaling * each.weight

    def holds(self, expert: int) -> bool:
        """Return whether the file has factors of an expert."""
        return self._place is None or expert in self._place

    def add_to(self, change: Tensor, weight: Tensor, expert: int) -> None:
        """Add the change of one expert with base ``weight``, both ``[out, in]`` fp32."""
        a, b = self._factors(expert)
        change += self.scaling * (b @ a)

    def acts(self, probe: Tensor, weight: Tensor, expert: int) -> Tensor:
        """Return what the change does to ``probe`` ``[in]``, by the factors in turn."""
        a, b = self._factors(expert)
        return self.scaling * (b @ (a @ probe))

    def _factors(self, expert: int) -> tuple[Tensor, Tensor]:
        """Return A ``[r, in]`` and B ``[out, r]`` of one expert that has factors, fp32."""
        expert = expert if self._place is None else self._place[expert]
        rows = self._file.read_rows(self._a_name, expert * self._rank, (expert + 1) * self._rank)
        return rows.float().to(self._device), self._b[:, expert :: self._experts]


class RawSingleExperts:
    """Layers of single experts straight from the file, each with the rows that it changes."""

    def __init__(self, each: WeightedAdapter, module: str, device: torch.device) -> None:
        """Note the layers of the stack ``module``."""
        self._layers = each.adapter.targets[module].singles
        self._file, self._weight, self._device = each.adapter.file, each.weight, device

    def holds(self, expert: int) -> bool:
        """Return whether the file has factors of an expert."""
        return any(layer.expert == expert for layer in self._layers)

    def add_to(self, change: Tensor, weight: Tensor, expert: int) -> None:
        """Add the change of one expert with base ``weight``, both ``[out, in]`` fp32."""
        for rows, scaling, a, b in self._of(expert):
            change[rows] += scaling * (b @ a)

    def acts(self, probe: Tensor, weight: Tensor, expert: int) -> Tensor:
        """Return what the change does to ``probe`` ``[in]``, by the factors in turn."""
        out = torch.zeros(weight.shape[0], device=self._device)
        for rows, scaling, a, b in self._of(expert):
            out[rows] += scaling * (b @ (a @ probe))
        return out

    def _of(self, expert: int) -> list[tuple[slice, float, Tensor, Tensor]]:
        # gpt-oss reads even rows of gate_up_proj as the gate, odd ones as what it multiplies.
        starts = {"whole": (0, 1), "gate": (0, 2), "up": (1, 2)}
        found = []
        for layer in self._layers:
            if layer.expert == expert:
                stem = f"{PREFIX}{layer.module}.lora_"
                a, b = (self._file.read(f"{stem}{x}.weight").float() for x in "AB")
                start, step = starts[layer.part]
                scaling = layer.scaling * self._weight
                pair = a.to(self._device), b.to(self._device)
                found.append((slice(start, None, step), scaling, *pair))
        return found


class RawEmbedding:
    """An embedding's factors straight from the file: ``delta = scaling (B A)^T``.

    See peft, ``lora.layer.Embedding.get_delta_weight``.
    """

    def __init__(self, each: WeightedAdapter, module: str, device: torch.device) -> None:
        """Read the factors of ``module``."""
        target, file = each.adapter.targets[module], each.adapter.file
        self._a, self._b = (
            file.read(f"{target.key}.lora_embedding_{x}").float().to(device) for x in "AB"
        )
        self._scaling = target.scaling * each.weight

    def holds(self, expert: int) -> bool:
        """Return True: there is one weight."""
        return True

    def add_to(self, change: Tensor, weight: Tensor, expert: int) -> None:
        """Add the change, ``[V, H]`` fp32."""
        change += self._scaling * (self._b @ self._a).T

    def acts(self, probe: Tensor, weight: Tensor, expert: int) -> Tensor:
        """Return what the change does to ``probe`` ``[H]``, by the factors in turn."""
        return self._scaling * ((probe @ self._b) @ self._a)


class RawDora(RawFactors):
    """DoRA of a linear layer straight from the file, in float64.

    ``W' = m (W + scaling B A) / |W + scaling B A|``, norms over the inputs of each row.

    See peft, ``DoraLinearVariant.merge_safe``.
    """

    def __init__(self, each: WeightedAdapter, module: str, device: torch.device) -> None:
        """Read factors and lengths of ``module``."""
        super().__init__(each, module, device)
        name = each.adapter.targets[module].magnitude
        self._lengths = each.adapter.file.read(name).double().to(device)

    def add_to(self, change: Tensor, weight: Tensor, expert: int) -> None:
        """Add ``W' - W`` for the base's ``weight``, both ``[out, in]`` fp32."""
        change += self._change(weight).float()

    def acts(self, probe: Tensor, weight: Tensor, expert: int) -> Tensor:
        """Return what the change does to ``probe`` ``[in]``."""
        return (self._change(weight) @ probe.double()).float()

    def _change(self, weight: Tensor) -> Tensor:
        a, b = self._factors(0)
        wide = weight.double()
        unscaled = wide + self.scaling * (b.double() @ a.double())
        return unscaled * (self._lengths / unscaled.square().sum(1).sqrt()).unsqueeze(1) - wide


def raw_change(
    each: WeightedAdapter, module: str, device: torch.device
) -> RawFactors | RawSingleExperts | RawEmbedding:
    """Return the change of one target by the layout in which the file has it."""
    target = each.adapter.targets[module]
    if target.embedding:
        return RawEmbedding(each, module, device)
    if target.singles:
        return RawSingleExperts(each, module, device)
    return (RawDora if target.dora else RawFactors)(each, module, device)


def inspect_whole(
    base: Checkpoint, merged: Checkpoint, adapters: Sequence[WeightedAdapter]
) -> list[str]:
    """Return faults of the tensors that adapters hold whole, in rows, or add without factors.

    The values are compared with the adapters' own, rounded once to the merged file's dtype.

    Args:
        base: What was merged into.
        merged: The file in question.
        adapters: What was merged.
    """
    faults = []
    for name in sorted({name for each in adapters for name in each.adapter.whole}):
        holders = [each for each in adapters if name in each.adapter.whole]
        wanted = base.read(name).float()
        for each in holders:
            whole = each.adapter.whole[name]
            trained = each.adapter.file.read(whole.stored).float()
            if whole.kind == "replace":
                wanted = trained
            elif whole.kind == "rows":
                wanted[list(whole.rows)] = trained
            else:
                wanted += each.weight * whole.scaling * trained
        found = merged.read(name)
        different = int((found != wanted.to(found.dtype)).sum())
        if different:
            faults.append(f"{name}: {different} of {found.numel()} values are not the adapter's")
    return faults
