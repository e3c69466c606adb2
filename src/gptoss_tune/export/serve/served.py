"""A model to serve, and what the parts of a bundle must agree on.

GPUs and heads, context and model, memory, image, name and address are checked here, because servers
find out after minutes of loading. A server listens on this machine alone unless an address is
given; then it wants a key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.deployment import addresses, images, places
from gptoss_tune.export.serve.deployment.adapters import Adapters
from gptoss_tune.export.serve.sizes.memory import USED_FRACTION, Need, gib, need
from gptoss_tune.plan.gpus import GPUS, Gpu

MODEL_MOUNT = places.MODEL_MOUNT
"""Where a container finds the model."""
LOOPBACK = addresses.LOOPBACK
EVERYWHERE = "0.0.0.0"  # inside a container, whose port is published where ``host`` says
PORT = places.PORT
KEYS = {"vllm": "VLLM_API_KEY", "sglang": "SGLANG_API_KEY", "nim": "VLLM_API_KEY"}
"""The variable that holds the key which clients must send, of the targets that know keys."""
MOST_GPUS = 8
"""GPUs of one machine: a bundle starts one server on one machine."""

_CONTEXT = 131_072  # of gpt-oss where a configuration does not say
_SAFE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")  # Azure's rule, the strictest


@dataclass(frozen=True)
class Served:
    """A model to serve.

    Attributes:
        name: The name under which clients ask for it, beside ``adapters`` for the base alone.
        path: Folder of the merged checkpoint, or the base's name or folder beside ``adapters``.
        context: Longest prompt and answer together, in tokens.
        gpus: GPUs that share the weights.
        adapters: Adapters that are served beside it, or None.
        host: Address that the server listens on.
        config: The model's ``config.json``.
        weights: Bytes of all its tensors, 0 where they are not known.
        expert_weights: Bytes of the experts' tensors among them.
        gpu: The GPU that it is served on, or None where it is not said.
        image: Image with tag or digest that replaces the pinned one, or None.
    """

    name: str
    path: str
    context: int = 32_768
    gpus: int = 1
    adapters: Adapters | None = None
    host: str = LOOPBACK
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: int = 0
    expert_weights: int = 0
    gpu: Gpu | None = None
    image: str | None = None

    @property
    def open_to_others(self) -> bool:
        """Whether others than this machine can reach the server."""
        return not addresses.is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where it is asked from this machine."""
        return addresses.url_of(self.host, PORT)

    @property
    def needed(self) -> Need | None:
        """What each GPU needs, or None where the weights are not known."""
        if not self.weights:
            return None
        found = need(
            self.config,
            weights=self.weights,
            expert_weights=self.expert_weights,
            context=self.context,
            gpus=self.gpus,
        )
        beside = 0 if self.adapters is None else self.adapters.bytes_on_gpu
        return replace(found, weights=found.weights + beside)

    @property
    def host_memory_gib(self) -> int:
        """Memory of the machine that a container may use, in GiB.

        The weights once, as a server may read them before it moves them to the GPUs, 16 GiB of
        shared memory, and 16 for each GPU's process, which also holds every adapter: no
        measurement, a bound against a leak.
        """
        waiting = 0 if self.adapters is None else self.adapters.bytes_on_host * self.gpus
        return math.ceil((self.weights + waiting) / 2**30) + 16 + 16 * self.gpus

    def __post_init__(self) -> None:
        """Refuse what a target, the model or the GPU would refuse, all of it at once."""
        mistakes = [*_size_mistakes(self), *_gpu_mistakes(self), *_word_mistakes(self)]
        if mistakes:
            raise CheckpointError("\n".join(mistakes))


def _word_mistakes(served: Served) -> Iterator[str]:
    """Yield what is wrong with the address, the name and the image."""
    if not addresses.is_address(served.host):
        yield f"--host is '{served.host}'; expected an address such as 0.0.0.0 or ::1, or localhost"
    if not _SAFE_NAME.fullmatch(served.name):
        yield (
            f"--name is '{served.name}'; expected 3 to 32 letters, digits and dashes, a letter "
            "first: endpoints and model repositories use it"
        )
    if served.image is not None and (said := images.image_mistake(served.image)):
        yield said


def _size_mistakes(served: Served) -> Iterator[str]:
    """Yield why the model does not allow the context or the number of GPUs.

    vLLM gives each GPU ``key-value heads // GPUs`` of them, so more GPUs than key-value heads leave
    none (vLLM 0.33.0, ``gpt_oss.py``); experts need no such rule, their blocks are rounded up.
    """
    longest = served.config.get("max_position_embeddings", _CONTEXT)
    if served.context > longest:
        yield f"--context is {served.context}; the model reads at most {longest} tokens"
    heads = served.config.get("num_attention_heads", 64)
    shared = served.config.get("num_key_value_heads", 8)
    fitting = [n for n in range(1, MOST_GPUS + 1) if heads % n == 0 and shared % n == 0]
    if served.gpus not in fitting:
        yield (
            f"--gpus is {served.gpus}; the GPUs are of one machine, and each takes the same number "
            f"of the model's {heads} attention heads and {shared} key-value heads: expected one of "
            f"{', '.join(map(str, fitting))}"
        )


def _gpu_mistakes(served: Served) -> Iterator[str]:
    """Yield why the servers do not run on the GPU, or why it does not hold the model."""
    gpu = served.gpu
    if gpu is None:
        return
    if not gpu.has_bf16 or gpu.model == "mi300x":
        reason = "has no bf16" if not gpu.has_bf16 else "is no NVIDIA GPU, which the images are for"
        yield f"--gpu is {gpu.name}, which {reason}; choose another"
        return
    needed = served.needed
    if needed is None or needed.fits(gpu.memory_bytes):
        return
    enough = [one.name for one in GPUS if one.has_bf16 and needed.fits(one.memory_bytes)]
    yield (
        f"--gpu is {gpu.name} with {gib(gpu.memory_bytes)}, of which a server takes "
        f"{USED_FRACTION:.0%}; each of {served.gpus} needs {gib(needed.weights)} for weights and "
        f"{gib(needed.request)} for one request of {served.context} tokens: choose more --gpus, a "
        "smaller --context, merge with --format mxfp4, or "
        + (f"one of {', '.join(enough)}" if enough else "no single GPU is large enough")
    )


def local(served: Served) -> str:
    """Return the model as this machine names it: an absolute folder, or a name on the Hub."""
    return str(Path(served.path).absolute()) if Path(served.path).is_dir() else served.path
