"""The seam of the samplers: prompts in, tokens with their log-probabilities and experts out.

N tokens of a prompt, M sampled, L layers, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Request:
    """One answer to sample.

    Attributes:
        prompt: Ids up to and including ``<|start|>assistant``.
        max_new_tokens: Longest answer.
        seed: Of its draws: they depend on it alone, not on the requests beside it.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Sampled:
    """One sampled answer.

    Attributes:
        token_ids: Up to and including the token that ended it, of ``evaluate.parse.STOP_IDS``.
        logps: ``[M]`` fp32, log-probability of each under the distribution that it was drawn from.
        choices: ``[N + M - 1, L, K]`` uint8, experts of every token that went through the model, in
            the router's order; ``None`` where the sampler does not tell.
        version: Of the weights that sampled it.
    """

    token_ids: tuple[int, ...]
    logps: NDArray[np.float32]
    choices: NDArray[np.uint8] | None
    version: int


class Sampler(Protocol):
    """Samples answers with the weights of the model that is being trained.

    Attributes:
        name: As in the recipe.
        version: Of the weights it samples with.
    """

    name: str
    version: int

    def update(self, version: int) -> None:
        """Take over the trainer's weights as they are now; every rank calls it between two steps.

        Args:
            version: The number of optimizer steps that made them.
        """
        ...

    def sample(
        self,
        requests: Sequence[Request],
        temperature: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Sampled]:
        """Return an answer for each request, in order; temperature 0 takes the likeliest tokens.

        Raises:
            Stopped: ``should_stop`` was true; asked before each token.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
