"""What a step keeps for its backward pass, by the recipe's ``train.activation_checkpointing``.

``none`` keeps everything the kernels need (88 KB per token and layer at the released shapes),
``selective`` drops the largest piece, the gate_up output of every routed row, and multiplies again
for it (42 KB), ``full`` keeps a layer's input and runs the layer again (5.8 KB), and ``offload``
moves those inputs to pinned host memory while the next layer computes, and decodes one expert at a
time. From 16,384 tokens on, ``full`` also keeps what full attention computed (8.4 KB in every
second layer): scores grow with the square of the length, and by then they are most of what running
a layer again would cost. The experts are the last of a layer and nothing of it reads what they
return, so when it is run again they only save their input: their backward starts from there.

Running a layer again must not choose other experts: two logits that differ by one rounding swap
places, and then the gradients belong to rows that the forward never computed. The router's first
choice is kept and used again, and both passes compute the routing weights from it by the same
operations.

Rejected: transformers' ``gradient_checkpointing_enable``, which knows nothing of routers and makes
the embeddings' output require gradients; a policy by operation (torch's selective checkpointing),
which cannot see inside a fused kernel.

T tokens, K experts per token, E experts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from gptoss_kernels.attention.interface import KeptAttention
from gptoss_kernels.experts.records import KeptExperts
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from gptoss_tune.model.experts import ExpertSettings
from gptoss_tune.model.routing import RouterChoice, keep_choice
from gptoss_tune.plan.experts.at_work import SCRATCH_BYTES
from gptoss_tune.plan.training_setup import KEEP_ATTENTION_FROM

Checkpointing = Literal["none", "selective", "full", "offload"]


def set_checkpointing(model: nn.Module, mode: Checkpointing) -> None:
    """Let every decoder layer of ``model`` keep what ``mode`` says; calling it again changes it.

    Args:
        model: A gpt-oss model, bare or inside PEFT.
        mode: As in the recipe.

    Raises:
        ValueError: The mode is unknown, or the model is not gpt-oss.
    """
    if mode not in ("none", "selective", "full", "offload"):
        raise ValueError(f"checkpointing must be none, selective, full or offload, got {mode!r}")
    layers: list[Any] = [m for m in model.modules() if type(m).__name__ == "GptOssDecoderLayer"]
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no GptOssDecoderLayer; is it gpt-oss?")
    again = mode in ("full", "offload")
    _share_inputs(model)
    offloader = InputOffloader() if mode == "offload" else None
    for layer in layers:
        layer.gradient_checkpointing = again
        # PEFT wraps the experts once per adapted stack.
        (experts,) = (m for m in layer.modules() if type(m).__name__ == "GptOssExperts")
        run = partial(_run_again, layer, experts, offloader=offloader)
        layer._gradient_checkpointing_func = run if again else None
        keep_choice(layer.mlp.router, kept=again)
        settings = getattr(experts, "expert_settings", ExpertSettings())
        experts.expert_settings = replace(
            settings,
            recompute_gate_up=mode != "none",
            scratch_bytes=SCRATCH_BYTES[mode == "offload"],
        )


def _run_again(
    layer: Any,
    experts: Any,
    forward: Callable[..., Any],
    hidden_states: Tensor,
    *,
    offloader: InputOffloader | None,
) -> Any:
    """Run one layer, keeping its input only, and run it again in backward.

    Args:
        layer: The ``GptOssDecoderLayer``.
        experts: Its ``GptOssExperts``.
        forward: Its forward with all arguments but the first, as transformers hands it over.
        hidden_states: ``[B, S, H]``.
        offloader: Where the input waits; ``None``: where it is.
    """
    choice = RouterChoice()
    # The work grows with the whole row, of which this rank may hold a part.
    length = hidden_states.shape[1] * getattr(layer.self_attn, "context_ranks", 1)
    long = length >= KEEP_ATTENTION_FROM and layer.self_attn.sliding_window is None
    kept = KeptAttention() if long and offloader is None else None
    kept_experts = KeptExperts(keeps_rows=offloader is None)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        first, again = (
            _same_choices(layer, experts, choice, kept, kept_experts, repeated=repeated)
            for repeated in (False, True)
        )
        return first, again

    run = partial(
        checkpoint,
        forward,
        hidden_states,
        use_reentrant=False,
        preserve_rng_state=False,  # gpt-oss has no dropout, and saving the state waits for the GPU
        context_fn=contexts,
    )
    if offloader is None:
        return run()
    with saved_tensors_hooks(offloader.pack, offloader.unpack):
        return run()


def _share_inputs(model: nn.Module) -> None:
    """Let adapters read the hidden states as they are where autocast will convert the weights.

    PEFT widens the input to the dtype of the factors, and autocast narrows it again: one more copy
    for each of q, k, v and o, 25 KB per token and layer, which every mode but these hooks keeps.
    """
    adapted: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
    for module in adapted:
        if not hasattr(module, "share_input_handle"):
            module.share_input_handle = module.register_forward_pre_hook(_share_input)


def _share_input(module: Any, args: tuple[Any, ...]) -> None:
    module.cast_input_dtype_enabled = not torch.is_autocast_enabled(args[0].device.type)


@contextmanager
def _same_choices(
    layer: Any,
    experts: Any,
    choice: RouterChoice,
    kept: KeptAttention | None,
    kept_experts: KeptExperts,
    *,
    repeated: bool,
) -> Iterator[None]:
    kept_experts.repeated = repeated
    layer.mlp.router.choice, layer.self_attn.attention_kept = choice, kept
    experts.experts_kept = kept_experts
    try:
        yield
    finally:
        layer.mlp.router.choice = layer.self_attn.attention_kept = experts.experts_kept = None


class InputOffloader:
    """Hooks that keep saved tensors in pinned host memory, copied beside the computation.

    Copies run on a stream of their own. When backward asks for a layer's input, the input of the
    layer before it starts on its way too, so that it is there when it is needed. On a CPU there is
    nowhere to go and nothing happens.
    """

    smallest_bytes = 1 << 20
    """Smaller tensors stay: their copy costs more than their memory."""

    def __init__(self) -> None:
        """Start with no copies."""
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._last: weakref.ref[_HostCopy] | None = None

    def pack(self, tensor: Tensor) -> Tensor | _HostCopy:
        """Start copying ``tensor`` to the host; return what takes its place."""
        if tensor.device.type != "cuda" or tensor.nbytes < self.smallest_bytes:
            return tensor
        stream = self._stream(tensor.device)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # its memory is not given away before the copy is done
        copy = _HostCopy(host, tensor.device, self._last)
        self._last = weakref.ref(copy)
        return copy

    def unpack(self, packed: Tensor | _HostCopy) -> Tensor:
        """Return the tensor on its device, and send for the one saved before it."""
        if isinstance(packed, Tensor):
            return packed
        self._fetch(packed)
        before = packed.before() if packed.before is not None else None
        if before is not None:
            self._fetch(before)
        assert packed.tensor is not None and packed.ready is not None
        current = torch.cuda.current_stream(packed.device)
        current.wait_event(packed.ready)
        packed.tensor.record_stream(current)
        tensor, packed.tensor = packed.tensor, None
        return tensor

    def _fetch(self, copy: _HostCopy) -> None:
        if copy.tensor is not None:
            return
        stream = self._stream(copy.device)
        with torch.cuda.stream(stream):  # after the copy to the host, which used the same stream
            copy.tensor = copy.host.to(copy.device, non_blocking=True)
            copy.ready = torch.cuda.Event()
            copy.ready.record(stream)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


@dataclass(eq=False)
class _HostCopy:
    """One tensor in host memory, and on its way back.

    Attributes:
        host: Pinned.
        device: Where it came from.
        before: The copy made before this one, which backward needs after it.
        tensor: The tensor on ``device`` once it was sent for.
        ready: When ``tensor`` is complete.
    """

    host: Tensor
    device: torch.device
    before: weakref.ref[_HostCopy] | None
    tensor: Tensor | None = None
    ready: torch.cuda.Event | None = None
