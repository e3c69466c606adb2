"""The gradient check of the first steps: every adapter trains, and nothing else moves.

Adapters that are created and never reached by a gradient look like any others: the loss falls a
little through the rest, the file has the right names, and nothing was learned by the experts. So
for the first updates it is checked that

- every B gets a gradient and moves; every A does, once its B has left zero;
- every expert gets one that a token was routed to with a routing weight above zero, where the loss
  depends on that token (padding and unscored tokens at the end of a row train nobody), if it has
  factors: where experts were chosen, the others have nothing to learn;
- nothing frozen changes by a bit.

Findings are collected on the device and read once, when the watch ends. Comparing norms of the
whole model's gradient was the alternative: one silent layer of 24 does not show in it.

K experts per token, E experts, T tokens, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_tune.distributed import sum_over_ranks
from gptoss_tune.model.lora import chosen_experts
from gptoss_tune.model.parallel.sharding import whole
from gptoss_tune.train.guard.checksum import checksum

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_MOST_NAMED = 8


@dataclass
class Watched:
    """What was seen of one trained tensor.

    Attributes:
        name: Its name in the model.
        parameter: The tensor.
        start: Its checksum before the first update.
        had_gradient: Scalar bool: a gradient was not zero in a step with a learning rate above 0.
        needs_gradient: Scalar bool: one was to be expected (for an A: its B was not zero).
        experts: ``[E]`` bool, experts that got a gradient; ``None`` outside of experts.
        needy_experts: ``[E]`` bool, experts for which one was to be expected.
        with_factors: ``[n]`` int64, the experts whose factors it holds, as they lie in it.
    """

    name: str
    parameter: nn.Parameter
    start: Tensor
    had_gradient: Tensor
    needs_gradient: Tensor
    experts: Tensor | None = None
    needy_experts: Tensor | None = None
    with_factors: Tensor | None = None

    @property
    def is_A(self) -> bool:
        """Whether this is the first factor of its pair."""
        return "lora_A" in self.name

    @property
    def layer(self) -> int:
        """Number of its layer."""
        found = _LAYER.search(self.name)
        assert found is not None  # adapters live in layers only
        return int(found[1])


@dataclass
class Routed:
    """Which experts of one layer had something to learn in this step.

    Attributes:
        useful: ``[E]`` int64, routed (token, choice) pairs that the loss depends on.
        with_factors: ``[n]`` int64, the experts that have factors, ascending.
    """

    useful: Tensor
    with_factors: Tensor
    handles: list[RemovableHandle] = field(default_factory=list)


class GradientCheck:
    """Watch a model from its first step on; ``verdict`` says what is wrong with it."""

    def __init__(self, model: nn.Module) -> None:
        """Take the checksums of every tensor of ``model`` and start to watch its experts."""
        self._called = plain_names(model)
        self._routed: dict[int, Routed] = {}
        for name, module in model.named_modules():
            if isinstance(module, cast(type, GptOssExperts)):
                self._watch_experts(name, module)
        named = list(model.named_parameters())
        self._trained = {n: self._watch(n, p) for n, p in named if p.requires_grad}
        self._frozen = [(n, p, checksum(p)) for n, p in named if not p.requires_grad]

    def observe(self, *, updates: bool) -> None:
        """Look at the gradients of a step, before they are clipped.

        Args:
            updates: The step's learning rate is above 0; without that only B's show anything, and
                nothing has to move.
        """
        if updates:
            for watched in self._trained.values():
                self._look_at(watched)
        for routed in self._routed.values():
            routed.useful.zero_()

    def close(self) -> None:
        """Stop watching."""
        for routed in self._routed.values():
            for handle in routed.handles:
                handle.remove()
            routed.handles = []

    def verdict(self) -> list[str]:
        """Return one line per tensor that does not do what it should; every rank has to ask."""
        found, needy = [], self._needy()
        for watched, moved in zip(self._trained.values(), self._moved(), strict=True):
            name = self._called[watched.name]
            had, needs = bool(watched.had_gradient), bool(watched.needs_gradient)
            if needs and not had:
                found.append(f"{name} got no gradient")
            elif had and not moved:
                found.append(f"{name} got a gradient and did not move")
            if watched.experts is not None and had:
                silent = (needy[watched.name] & ~watched.experts).nonzero().flatten().tolist()
                if silent:
                    found.append(f"{name}: experts {few(silent)} got tokens and no gradient")
        return found + self.moved_frozen()

    def moved_frozen(self) -> list[str]:
        """Return one line per frozen tensor that is not what it was."""
        return [
            f"{self._called[name]} is frozen and has changed"
            for name, parameter, start in self._frozen
            if not torch.equal(checksum(parameter), start)
        ]

    def _moved(self) -> list[bool]:
        """Return which trained tensors are not what they were, on any rank.

        Of a tensor that is spread over ranks, one rank's share may rightly stay as it is: that of
        experts which no token was routed to.
        """
        moved = [checksum(w.parameter) != w.start for w in self._trained.values()]
        return (sum_over_ranks(torch.stack(moved).long()) > 0).tolist() if moved else []

    def _needy(self) -> dict[str, Tensor]:
        """Return ``[E]`` bool by tensor: experts for which a gradient was to be expected.

        Of all ranks' tokens: a gradient is the sum over ranks, so who got tokens has to be, too.
        """
        own = {n: w.needy_experts for n, w in self._trained.items() if w.needy_experts is not None}
        if not own:
            return {}
        return dict(
            zip(own, sum_over_ranks(torch.stack(list(own.values())).long()) > 0, strict=True)
        )

    def _watch(self, name: str, parameter: nn.Parameter) -> Watched:
        no = torch.zeros((), dtype=torch.bool, device=parameter.device)
        watched = Watched(name, parameter, checksum(parameter), no, no)
        if ".experts." in name and watched.layer in self._routed:
            none = torch.zeros_like(self._routed[watched.layer].useful, dtype=torch.bool)
            watched.experts = watched.needy_experts = none
            watched.with_factors = self._routed[watched.layer].with_factors
        return watched

    def _watch_experts(self, name: str, module: Any) -> None:
        found = _LAYER.search(f"{name}.")
        assert found is not None  # experts live in layers only
        useful = torch.zeros(module.num_experts, dtype=torch.int64, device=module.down_proj.device)
        chosen = chosen_experts(module) or range(module.num_experts)
        with_factors = torch.tensor(list(chosen), device=useful.device)
        routed = self._routed[int(found[1])] = Routed(useful, with_factors)

        def count(_: nn.Module, args: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
            if output.requires_grad:
                indices, weights = (arg.detach() for arg in args[1:])
                output.register_hook(lambda grad: _count(routed.useful, grad, indices, weights))

        routed.handles.append(module.register_forward_hook(count))

    def _look_at(self, watched: Watched) -> None:
        gradient = watched.parameter.grad
        partner = self._trained.get(watched.name.replace("lora_A", "lora_B"))
        open_to = torch.ones_like(watched.had_gradient)
        if watched.is_A and partner is not None:
            open_to = (whole(partner.parameter.detach()) != 0).any()
        watched.needs_gradient = watched.needs_gradient | open_to
        if gradient is None:
            if watched.experts is not None:
                self._expect(watched, partner)
            return
        nonzero = whole(gradient) != 0
        watched.had_gradient = watched.had_gradient | nonzero.any()
        if watched.experts is not None:
            watched.experts = watched.experts | _by_expert(nonzero, watched)
            self._expect(watched, partner)

    def _expect(self, watched: Watched, partner: Watched | None) -> None:
        """Add the experts that had something to learn; an A only where its B is open to it."""
        routed = self._routed[watched.layer]
        held = torch.zeros_like(routed.useful, dtype=torch.bool)
        held[routed.with_factors] = True
        needy = (routed.useful > 0) & held
        if watched.is_A and partner is not None:
            needy = needy & _by_expert(whole(partner.parameter.detach()) != 0, partner)
        assert watched.needy_experts is not None
        watched.needy_experts = watched.needy_experts | needy


def plain_names(model: nn.Module) -> dict[str, str]:
    """Return what messages call each parameter of ``model``, by its name in there.

    The prefixes of wrappers are left out. PEFT tells the adapters of one layer's experts apart by
    how deep they are nested only, so those say which stack they belong to.
    """
    stacks = {n: m.parameter_name for n, m in model.named_modules() if isinstance(m, ParamWrapper)}
    found = {}
    for name, _ in model.named_parameters():
        stack = stacks.get(name.partition(".lora_")[0])
        plain = name.removeprefix("module.").removeprefix("base_model.model.")
        found[name] = f"{plain} ({stack})" if stack else plain
    return found


def _count(useful: Tensor, grad: Tensor, indices: Tensor, weights: Tensor) -> None:
    """Add the pairs whose output the loss depends on; ``grad [T, H]`` is of the layer's output."""
    reached = (grad != 0).any(dim=-1, keepdim=True)
    pairs = (reached & (weights != 0)).flatten().long()
    # An index of E or more belongs to an expert of another rank.
    index = indices.flatten()
    here = index < useful.numel()
    useful.index_add_(0, index.clamp(max=useful.numel() - 1), pairs * here)


def _by_expert(nonzero: Tensor, watched: Watched) -> Tensor:
    """Return ``[E]`` bool: PEFT keeps A as ``[n * R, in]`` and B as ``[out, R * n]``.

    Those of chosen experts go to their numbers; the others have none, and nothing that is not zero.
    """
    assert watched.experts is not None and watched.with_factors is not None
    experts = watched.with_factors.numel()
    if watched.is_A:
        held = nonzero.view(experts, -1).any(dim=1)
    else:
        held = nonzero.view(nonzero.shape[0], -1, experts).any(dim=1).any(dim=0)
    return torch.zeros_like(watched.experts).index_copy(0, watched.with_factors, held)


def few(names: Sequence[object]) -> str:
    """Return the first names of many, and how many more there are."""
    shown = ", ".join(map(str, names[:_MOST_NAMED]))
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
