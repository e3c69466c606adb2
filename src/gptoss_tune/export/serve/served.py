"""A model to serve, and what the parts of a bundle must agree on.

GPUs and heads, context and model, name and address are checked here, because servers find out after
minutes of loading. A server listens on this machine alone unless an address is given; then it wants
a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError

MODEL_MOUNT = "/models"
"""Where a container finds the model."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = "0.0.0.0"  # inside a container, whose port is published where ``host`` says
PORT = 8000
KEYS = {"vllm": "VLLM_API_KEY", "sglang": "SGLANG_API_KEY", "nim": "VLLM_API_KEY"}
"""The variable that holds the key which clients must send, of the targets that know keys."""

_CONTEXT = 131_072  # of gpt-oss where a configuration does not say
_SAFE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")  # Azure's rule, the strictest


@dataclass(frozen=True)
class Served:
    """A model to serve.

    Attributes:
        name: The name under which clients ask for it.
        path: Folder of the merged checkpoint, or the base's name when ``adapter`` is set.
        context: Longest prompt and answer together, in tokens.
        gpus: GPUs that share the weights.
        adapter: Folder of an adapter in vLLM's form, with its rank, or None.
        host: Address that the server listens on.
        config: The model's ``config.json``.
    """

    name: str
    path: str
    context: int = 32_768
    gpus: int = 1
    adapter: tuple[Path, int] | None = None
    host: str = LOOPBACK[0]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def open_to_others(self) -> bool:
        """Whether others than this machine can reach the server."""
        return self.host not in LOOPBACK

    def __post_init__(self) -> None:
        """Refuse a name that a target would refuse, and what the model cannot do."""
        longest = self.config.get("max_position_embeddings", _CONTEXT)
        if self.context > longest:
            raise CheckpointError(
                f"--context is {self.context}; the model reads at most {longest} tokens"
            )
        heads = self.config.get("num_attention_heads", 64)
        shared = self.config.get("num_key_value_heads", 8)
        fitting = [n for n in range(1, heads + 1) if _divides(n, heads, shared)]
        if self.gpus not in fitting:
            raise CheckpointError(
                f"--gpus is {self.gpus}; each GPU takes the same number of the model's {heads} "
                f"attention heads and {shared} key-value heads: expected one of "
                f"{', '.join(map(str, fitting))}"
            )
        if not re.fullmatch(r"[\w.:-]+", self.host, re.ASCII):
            raise CheckpointError(f"--host is '{self.host}'; expected an address such as 0.0.0.0")
        if not _SAFE_NAME.fullmatch(self.name):
            raise CheckpointError(
                f"--name is '{self.name}'; expected 3 to 32 letters, digits and dashes, a letter "
                "first: endpoints and model repositories use it"
            )


def _divides(gpus: int, heads: int, key_value_heads: int) -> bool:
    """Return whether heads divide evenly over GPUs; few key-value heads are copied to several."""
    return heads % gpus == 0 and (key_value_heads % gpus == 0 or gpus % key_value_heads == 0)


def local(served: Served) -> str:
    """Return the model as this machine names it: an absolute folder, or a name on the Hub."""
    return str(Path(served.path).absolute()) if Path(served.path).is_dir() else served.path
