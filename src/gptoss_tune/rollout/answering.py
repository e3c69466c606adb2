"""What the samplers of this process share: a request being answered, and the model's state for it.

N tokens of a prompt, M sampled, L layers, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gptoss_tune.evaluate.generate import evaluating
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.model.routing import Recorded, recording
from gptoss_tune.rollout.draws import generator
from gptoss_tune.rollout.sampler import Request, Sampled


@dataclass
class Answering:
    """One request while it is answered.

    Attributes:
        number: Of the request.
        request: It.
        draws: Its random numbers.
        token_ids: Sampled so far.
        logps: Their log-probabilities, scalars on the device.
        choices: ``[tokens, L, K]`` of every forward pass, on the device.
        chosen: Tokens in ``choices``, where ``choose`` adds them.
    """

    number: int
    request: Request
    draws: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logps: list[Tensor] = field(default_factory=list)
    choices: list[Tensor] = field(default_factory=list)
    chosen: int = 0

    @property
    def finished(self) -> bool:
        """Whether its last token ended it, or it is as long as it may be."""
        ids = self.token_ids
        return bool(ids) and (ids[-1] in STOP_IDS or len(ids) >= self.request.max_new_tokens)

    def choose(self, choices: Tensor) -> None:
        """Add the experts of further tokens, and count them."""
        self.choices.append(choices)
        self.chosen += len(choices)

    def sampled(self, version: int) -> Sampled:
        """Return the answer, of weights ``version``."""
        choices = torch.cat(self.choices).cpu().numpy() if self.choices else None
        logps = torch.stack(self.logps).float().cpu().numpy()
        return Sampled(tuple(self.token_ids), logps.astype(np.float32), choices, version)


def begin(requests: Sequence[Request]) -> list[Answering]:
    """Return the requests with nothing answered yet.

    Raises:
        ValueError: A request has no prompt, or may have no token.
    """
    for number, request in enumerate(requests):
        if not request.prompt or request.max_new_tokens < 1:
            raise ValueError(
                f"request {number} has {len(request.prompt)} tokens of prompt and may have "
                f"{request.max_new_tokens} sampled; both need to be 1 or more"
            )
    return [Answering(n, r, generator(r.seed)) for n, r in enumerate(requests)]


@contextmanager
def answering(model: nn.Module, *, record: bool) -> Iterator[Recorded | None]:
    """Let ``model`` answer: evaluation mode, no gradient, training's precision, choices recorded.

    Args:
        model: As ``unwrapped`` returns it.
        record: Whether the routers' choices are wanted; else ``None`` is yielded.
    """
    narrow = base_of(model).config.dtype == torch.bfloat16
    # As in training: factors and fp32 values multiply in bf16.
    autocast = torch.autocast(device_of(model).type, dtype=torch.bfloat16, enabled=narrow)
    with torch.no_grad(), evaluating(model), autocast:
        if record:
            with recording(model) as recorded:
                yield recorded
        else:
            yield None


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside a DDP wrapper, or ``model``."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def base_of(model: Any) -> Any:
    """Return the ``GptOssForTuning`` of a model, adapted or bare."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(model: nn.Module) -> torch.device:
    """Return where ``model`` computes."""
    # The embeddings may wait in host memory, and lm_head as well; the final norm does not.
    return next(p.device for n, p in model.named_parameters() if n.endswith("model.norm.weight"))
