"""Factors of one expert each, as programs write them that lay the experts out one by one.

Legend: E experts, H hidden, I intermediate, r a rank.

A 4-bit loader (Unsloth's) turns each stack into linear layers, ``experts.gate_up_projs.3`` with the
interleaved rows of the release; programs that know Mixtral have ``experts.3.gate_proj`` and
``up_proj``, the even and the odd rows. Every such layer has factors, a rank and a scaling of its
own. They become factors of the stack without a loss: those of gate and up stand side by side as
blocks, so that their ranks add up, smaller ranks are padded with zeros, and an expert without
factors is not changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gptoss_tune.errors import CheckpointError

Part = Literal["whole", "gate", "up"]
_PARTS: Mapping[str, tuple[str, Part]] = {
    "gate_up_projs": ("gate_up_proj", "whole"),
    "down_projs": ("down_proj", "whole"),
    "gate_projs": ("gate_up_proj", "gate"),
    "up_projs": ("gate_up_proj", "up"),
    "gate_proj": ("gate_up_proj", "gate"),
    "up_proj": ("gate_up_proj", "up"),
    "down_proj": ("down_proj", "whole"),
    "w1": ("gate_up_proj", "gate"),
    "w3": ("gate_up_proj", "up"),
    "w2": ("down_proj", "whole"),
}
_MODULE = re.compile(
    r"model\.layers\.(?P<layer>\d{1,4})\.mlp\.experts\."
    r"(?:(?P<list>\w+)\.(?P<in_list>\d{1,4})|(?P<number>\d{1,4})\.(?P<name>\w+))"
)


@dataclass(frozen=True)
class SingleExpert:
    """The linear layer of one expert, or of its gate or up half, that has factors.

    Attributes:
        expert: Its number.
        part: The rows of the projection that it changes: every one, the even or the odd ones.
        module: Its name, as ``target_modules`` selects it.
        rank: Of its factors.
        scaling: What ``B A`` is multiplied by.
    """

    expert: int
    part: Part
    module: str
    rank: int
    scaling: float


def single_expert_modules(names: Iterable[str]) -> list[str]:
    """Return the modules of single experts among tensors' names without PEFT's prefix."""
    modules = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
    return sorted(module for module in modules if _MODULE.fullmatch(module))


def stacks_of(
    modules: Iterable[str],
    rank: Callable[[str], tuple[int, float]],
    experts: int,
    where: str,
) -> dict[str, tuple[SingleExpert, ...]]:
    """Return what the file has of each stack, by the stack's name, ascending by expert.

    Args:
        modules: From ``single_expert_modules``.
        rank: Gives a module's rank and scaling by the configuration.
        experts: E of the base.
        where: The file, for messages.

    Raises:
        CheckpointError: A layer that is none of an expert's, an expert that is not there, two that
            change the same rows, or a layout whose row order is not known.
    """
    found: dict[str, list[SingleExpert]] = {}
    for module in modules:
        match = _MODULE.fullmatch(module)
        assert match is not None  # as single_expert_modules chose them
        name, number = match["list"] or match["name"], int(match["in_list"] or match["number"])
        if name not in _PARTS:
            raise CheckpointError(
                f"{where}: has factors of '{module}', a layer of one expert whose order of gate "
                "and up rows nothing says; known are gate_up_projs.N, down_projs.N and "
                "N.gate_proj, N.up_proj, N.down_proj: merge it where it was trained"
            )
        if number >= experts:
            raise CheckpointError(
                f"{where}: has factors of expert {number} ('{module}'), the base has {experts}; "
                "the adapter is of another base"
            )
        projection, part = _PARTS[name]
        single = SingleExpert(number, part, module, *rank(module))
        stack = f"model.layers.{int(match['layer'])}.mlp.experts.{projection}"
        found.setdefault(stack, []).append(single)
    for stack, singles in found.items():
        _refuse_overlap(stack, singles, where)
    return {
        stack: tuple(sorted(singles, key=lambda one: (one.expert, one.part)))
        for stack, singles in found.items()
    }


def _refuse_overlap(stack: str, singles: list[SingleExpert], where: str) -> None:
    """Refuse two layers that change the same rows of an expert."""
    seen: dict[tuple[int, str], str] = {}
    for single in singles:
        parts = ("gate", "up") if single.part == "whole" else (single.part,)
        for part in parts:
            other = seen.setdefault((single.expert, part), single.module)
            if other != single.module:
                raise CheckpointError(
                    f"{where}: '{other}' and '{single.module}' both change expert {single.expert} "
                    f"of {stack}; the file holds two adapters, save one"
                )


def stacked_rank(singles: Iterable[SingleExpert]) -> int:
    """Return the rank that holds each expert's factors, gate's and up's side by side."""
    ranks: dict[int, int] = {}
    for single in singles:
        ranks[single.expert] = ranks.get(single.expert, 0) + single.rank
    return max(ranks.values())


def common_scaling(singles: Iterable[SingleExpert]) -> float:
    """Return the scaling that all share, or 1 where each one's goes into its B."""
    scalings = {single.scaling for single in singles}
    return scalings.pop() if len(scalings) == 1 else 1.0


def stacked(
    singles: tuple[SingleExpert, ...],
    read: Callable[[str], tuple[Tensor, Tensor]],
    features: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return A ``[held, r, in]`` and B ``[held, out, r]`` fp32 of the experts with factors.

    Args:
        singles: Of one stack, ascending by expert.
        read: Gives A ``[r, in]`` and B ``[rows, r]`` of a module.
        features: ``(in, out)`` of the stack.
    """
    rank, scaling = stacked_rank(singles), common_scaling(singles)
    places = {expert: n for n, expert in enumerate(sorted({one.expert for one in singles}))}
    into, out = features
    all_a = torch.zeros(len(places), rank, into)
    all_b = torch.zeros(len(places), out, rank)
    filled = dict.fromkeys(places, 0)
    for single in singles:
        a, b = read(single.module)
        place, start = places[single.expert], filled[single.expert]
        stop = filled[single.expert] = start + single.rank
        all_a[place, start:stop] = a.float()
        rows = {"whole": slice(None), "gate": slice(0, None, 2), "up": slice(1, None, 2)}
        folded = b.float() if scaling == single.scaling else b.float() * single.scaling
        all_b[place, rows[single.part], start:stop] = folded
    return all_a, all_b
