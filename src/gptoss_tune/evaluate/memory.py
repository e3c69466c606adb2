"""Memory that a model needs to answer: packed weights, adapter, cache of keys and values.

Counted shape by shape, as a plan counts a training, and held by the tests against the bytes of a
loaded model and of its cache. What one layer works on while it reads a prompt is calculated too; it
grows with the prompt and is given back afterwards.
"""

# Legend: H hidden, I intermediate, E experts, K experts of a token.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from gptoss_tune.error_hints import allocators_words, is_out_of_memory
from gptoss_tune.errors import GptossTuneError, MachineError
from gptoss_tune.evaluate.load import EvaluatedModel
from gptoss_tune.plan.architecture import Architecture, read_architecture
from gptoss_tune.plan.memory import CONTEXT_BYTES
from gptoss_tune.plan.weights import FP32_BYTES, base_bytes, compute_bytes, head_bytes
from gptoss_tune.recipe import ModelSection
from gptoss_tune.weights.adapter_targets import Target


@dataclass(frozen=True)
class AnsweringMemory:
    """Bytes on the device that answers.

    Attributes:
        weights: By kind: ``experts``, ``attention``, ``embeddings``, ``other``, ``adapters``.
        packed: The experts are held in MXFP4.
        architecture: Of the base.
        value_bytes: Of one value in the compute dtype.
    """

    weights: dict[str, int]
    packed: bool
    architecture: Architecture
    value_bytes: int

    @property
    def held(self) -> int:
        """Bytes of all weights."""
        return sum(self.weights.values())

    def cache(self, tokens: int, rows: int = 1) -> int:
        """Return the bytes of the keys and values of ``rows`` conversations of ``tokens`` tokens.

        A windowed layer keeps one token less than it sees: the one at work is the last.
        """
        a = self.architecture
        kept = sum(
            tokens if kind == "full_attention" else min(tokens, a.window - 1)
            for kind in a.layer_types
        )
        return 2 * rows * kept * a.key_size * self.value_bytes

    def working(self, prompt: int) -> int:
        """Return the bytes that one layer works on while it reads ``prompt`` tokens.

        Of every routed row gate_up, its activation and the output; of every token what the heads
        read and wrote, the layer's input, its norm and its sum; and the logits of one token.
        """
        a, value = self.architecture, self.value_bytes
        rows = prompt * a.experts_per_token
        experts = rows * (3 * a.intermediate + a.hidden) * value
        attention = prompt * 2 * (a.query_size + a.key_size) * value
        logits = 2 * a.vocabulary * FP32_BYTES
        return max(experts, attention, logits) + 3 * prompt * a.hidden * value

    def peak(self, tokens: int, rows: int = 1) -> int:
        """Return what ``rows`` conversations of ``tokens`` tokens need, read at once."""
        return self.held + self.cache(tokens, rows) + self.working(tokens * rows)

    def describe(self, tokens: int, rows: int = 1) -> str:
        """Return one line: what is held, and what ``rows`` conversations of ``tokens`` add."""
        held = "MXFP4" if self.packed else "bf16" if self.value_bytes == 2 else "fp32"
        adapter = ", adapter" if self.weights["adapters"] else ""
        each = "" if rows == 1 else f" of each of {rows} prompts"
        return (
            f"needs {_size(self.held)} (experts {held}{adapter}), + "
            f"{_size(self.cache(tokens, rows))} KV cache and {_size(self.working(tokens * rows))} "
            f"work at {tokens:,} tokens{each}"
        )


def memory_of(subject: EvaluatedModel, section: ModelSection) -> AnsweringMemory:
    """Return what an opened model needs, before a weight of it is read."""
    sizes = read_architecture(subject.checkpoint.path / "config.json")
    targets = () if subject.adapter is None else subject.adapter.targets.values()
    return answering_memory(sizes, section, targets)


def answering_memory(
    architecture: Architecture, section: ModelSection, targets: Iterable[Target] = ()
) -> AnsweringMemory:
    """Return what a base, with an adapter or none, needs to answer.

    Args:
        architecture: Sizes of the base; ``architecture_of("openai/gpt-oss-20b")`` needs no file.
        section: Dtype, precision of the experts and of attention, place of the embeddings.
        targets: What the adapter changes.
    """
    if not architecture.packed:
        section = section.model_copy(update={"experts_precision": "bf16"})
    kinds, value = base_bytes(architecture, section), compute_bytes(section)
    head = head_bytes(architecture, section)
    if section.embeddings == "cpu":
        kinds["embeddings"] = head
    if section.head == "cpu":
        kinds["embeddings"] -= head
    adapters = sum(a * b for target in targets for a, b in target.shapes) * value
    packed = section.experts_precision == "mxfp4"
    return AnsweringMemory({**kinds, "adapters": adapters}, packed, architecture, value)


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a GPU, or available on the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] - CONTEXT_BYTES
    return psutil.virtual_memory().available


def shortage(
    memory: AnsweringMemory, tokens: int, device: torch.device, rows: int = 1
) -> str | None:
    """Return a warning where less memory is free than the model needs; ``None`` where it fits."""
    needed, free = memory.peak(tokens, rows), free_bytes(device)
    if needed <= free:
        return None
    return (
        f"warning: {_size(needed)} are needed at {tokens:,} tokens and {_size(max(free, 0))} are "
        f"free on {device}; {_WHAT_HELPS}"
    )


_WHAT_HELPS = (
    "end what else uses it (nvidia-smi lists it on a GPU), keep prompts and --max-new-tokens "
    "short, or compute in the host's memory with --device cpu"
)


@contextmanager
def telling_what_helps() -> Iterator[None]:
    """Turn running out of memory into one message that says what to do.

    Raises:
        MachineError: The memory of the device, or of the host, was full.
    """
    try:
        yield
    except GptossTuneError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            f"out of memory: {allocators_words(error)} To answer all the same: {_WHAT_HELPS}"
        ) from error


def _size(nbytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes / 2**10:.1f} KiB"
