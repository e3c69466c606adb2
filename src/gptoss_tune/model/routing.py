"""The router's choices: recorded where a model samples, and used again where it is trained.

Equal weights are not equal logits: decoding and a packed row sum in another order, and two router
logits that differ by one rounding swap places. What the model then computes is another function of
the same weights. The experts that the sampler chose are recorded, and training computes with them
(rollout routing replay, arXiv:2510.11370): the routing weights come from the trainer's own router
logits at the given experts, so gradients flow as before, and a choice that the trainer would have
made itself changes no bit.

Activation checkpointing that runs a layer again keeps the first pass's choice for the second by the
same hook, whoever made it.

B rows, S tokens of a row, T tokens of a forward pass, L layers, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

NO_CHOICE = 255
"""In the place of an expert: the token's router is to choose for itself (padding, tokens that no
sampler saw). gpt-oss has 128 experts at most."""


@dataclass
class RouterChoice:
    """The experts of one layer's tokens in one step, from the forward to the backward pass.

    Attributes:
        indices: ``[T, K]`` int64; ``None`` until the router has chosen.
    """

    indices: Tensor | None = None


class Recorded:
    """What the routers chose in the forward passes since the last ``take``."""

    def __init__(self, layers: int) -> None:
        """Begin with nothing, for ``layers`` routers."""
        self._passes: list[list[Tensor]] = [[] for _ in range(layers)]

    def add(self, layer: int, indices: Tensor) -> None:
        """Note ``indices [T, K]`` of one layer's pass."""
        self._passes[layer].append(indices.detach().to(torch.uint8))

    def take(self) -> Tensor:
        """Return ``[T, L, K]`` uint8 of all tokens since the last call, in order, and forget them.

        Raises:
            ValueError: No token went through the model, or not through all layers.
        """
        counts = {len(passes) for passes in self._passes}
        if counts == {0} or len(counts) != 1:
            raise ValueError(f"the routers ran {sorted(counts)} times since the last record")
        found = torch.stack([torch.cat(passes) for passes in self._passes], dim=1)
        self._passes = [[] for _ in self._passes]
        return found


@contextmanager
def recording(model: nn.Module) -> Iterator[Recorded]:
    """Record the choices of every router of ``model`` while the context lasts.

    Args:
        model: gpt-oss, bare, adapted, sharded or wrapped.

    Raises:
        ValueError: ``model`` is not gpt-oss, or has more experts than a byte tells apart.
    """
    routers = routers_of(model)
    recorded = Recorded(len(routers))
    handles: list[RemovableHandle] = []

    def record(layer: int) -> Any:
        return lambda router, args, output: recorded.add(layer, output[2])

    try:
        for layer, router in enumerate(routers):
            handles.append(router.register_forward_hook(record(layer)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaying(model: nn.Module, choices: Tensor | None) -> Iterator[None]:
    """Let the forward pass inside the context use given experts; ``None`` changes nothing.

    Backward passes may come after the context: a layer that is run again uses what it kept.

    Args:
        model: As in ``recording``.
        choices: ``[B, S, L, K]`` uint8 for the ``[B, S]`` tokens of the pass, in the order in which
            the router put them; where it is ``NO_CHOICE`` the router chooses.

    Raises:
        ValueError: ``model`` is not gpt-oss, or the shape does not fit it.
    """
    if choices is None:
        yield
        return
    routers = routers_of(model)
    wanted = (len(routers), routers[0].top_k)
    if choices.dim() != 4 or tuple(choices.shape[2:]) != wanted or choices.dtype != torch.uint8:
        raise ValueError(
            f"choices needs uint8 [B, S, {wanted[0]} layers, {wanted[1]} experts], got "
            f"{choices.dtype} {tuple(choices.shape)}"
        )
    handles: list[RemovableHandle] = []
    try:
        for layer, router in enumerate(routers):
            router.given = choices[:, :, layer].flatten(0, 1)
            if getattr(router, "choice_handle", None) is None:
                # First: whoever looks at the router's choice sees what is computed with.
                handles.append(router.register_forward_hook(use_choice, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for router in routers:
            router.given = None


def routers_of(model: nn.Module) -> list[Any]:
    """Return the ``GptOssTopKRouter`` of every layer, in order.

    Raises:
        ValueError: There is none, or a byte cannot number its experts.
    """
    routers: list[Any] = [m for m in model.modules() if type(m).__name__ == "GptOssTopKRouter"]
    if not routers:
        raise ValueError(f"{type(model).__name__} holds no GptOssTopKRouter; is it gpt-oss?")
    if routers[0].num_experts >= NO_CHOICE:
        raise ValueError(
            f"choices of experts are bytes, and {routers[0].num_experts} experts are too many; "
            f"{NO_CHOICE - 1} at most"
        )
    return routers


def keep_choice(router: Any, *, kept: bool) -> None:
    """Add or remove the hook by which a layer that is run again chooses as it did before.

    While it is there, ``router.choice`` may be a ``RouterChoice`` to fill or to use.
    """
    handle = getattr(router, "choice_handle", None)
    if handle is not None:
        handle.remove()
    router.choice = None
    router.choice_handle = router.register_forward_hook(use_choice) if kept else None


def use_choice(
    router: Any, args: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Put the kept choice, or else the given one, in the place of the router's; keep what is used.

    The weights are gathered and normalised here in the first pass too: checkpointing pairs what the
    two passes save by order.
    """
    choice, given = getattr(router, "choice", None), getattr(router, "given", None)
    if choice is None and given is None:
        return None
    logits, _, indices = output
    if choice is not None and choice.indices is not None:
        indices = choice.indices
    elif given is not None:
        indices = _given_or_own(given, indices)
    if choice is not None:
        choice.indices = indices
    chosen = logits.gather(1, indices)
    scores = torch.softmax(chosen, dim=1, dtype=chosen.dtype)
    return logits, scores, indices


def _given_or_own(given: Tensor, own: Tensor) -> Tensor:
    """Return ``[T, K]``: what is given, and the router's own choice for tokens without.

    Raises:
        ValueError: Other tokens went through the router than choices were given for.
    """
    if given.shape != own.shape:
        raise ValueError(
            f"choices are for {given.shape[0]} tokens, and {own.shape[0]} went through the router"
        )
    given = given.to(own.device, own.dtype)
    without = (given == NO_CHOICE).any(dim=1, keepdim=True)
    return torch.where(without, own, given)
