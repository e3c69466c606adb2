"""The sampler ``own``: the model's forward pass, a batch at a time, and a cache that grows.

It is the oracle of the other samplers: prompts go through the attention that training uses, and
every step is one call of the model. What holds whatever is in the batch: a request's random numbers
(they follow from its seed), and in fp32 its tokens, unless two lie closer than the rounding of one
product. Log-probabilities agree across batches to that rounding, because a matrix product of other
rows may be summed in another order; the same requests in the same order have the same bits.

A row that is finished leaves the batch: cache, mask and products shrink with it. Caches are not
kept from one turn of an episode to the next: rows of a batch share one length, so the caches of
episodes of unlike length would have to be cut and padded anew, and the rest of a prompt would go
through the explicit mask of decoding instead of the attention that training uses. ``batched`` keeps
what prompts share.

N tokens of a prompt, M sampled, L layers, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.harmony.vocabulary import ENDOFTEXT
from gptoss_tune.model.parallel.sharding import is_sharded
from gptoss_tune.model.routing import Recorded
from gptoss_tune.rollout.answering import (
    Answering,
    answering,
    base_of,
    begin,
    device_of,
    unwrapped,
)
from gptoss_tune.rollout.draws import choose
from gptoss_tune.rollout.sampler import Request, Sampled


class OwnSampler:
    """Answers requests with the weights of a model in this process.

    Attributes:
        name: As in the recipe.
        version: Of the weights it samples with: the model's own, as they are.
    """

    name = "own"

    def __init__(self, model: nn.Module, *, batch: int, replay: bool = True) -> None:
        """Sample from ``model``, which stays the caller's.

        Args:
            model: A ``GptOssForTuning``, adapted or bare, in a DDP wrapper or not; spread with
                FSDP2 every rank has to call ``sample`` at the same time.
            batch: Requests at a time.
            replay: Record the experts of every token.
        """
        self.version = 0
        self._model = unwrapped(model)
        self._batch, self._replay = batch, replay

    def update(self, version: int) -> None:
        """Note the number of the weights; they are the trainer's own."""
        self.version = version

    def close(self) -> None:
        """Nothing is held between two calls of ``sample``."""

    def sample(
        self,
        requests: Sequence[Request],
        temperature: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Sampled]:
        """Return an answer for each request, in order.

        Args:
            requests: Prompts; none is allowed, and needed on ranks without one where the model is
                spread.
            temperature: Of the drawn tokens; 0 takes the likeliest.
            should_stop: Asked before each token.

        Raises:
            ValueError: A request has no prompt, or may have no token.
            Stopped: ``should_stop`` was true, where the model is spread on any rank.
        """
        rows = begin(requests)
        together = Ranks() if is_sharded(self._model) else None
        # Longest first: a batch holds prompts of like length, and too little memory shows at once.
        longest_first = sorted(rows, key=lambda row: -len(row.request.prompt))
        with answering(self._model, record=self._replay) as recorded:
            for start in range(0, len(rows), self._batch):
                batch = longest_first[start : start + self._batch]
                self._answer(batch, temperature, recorded, together, should_stop)
            if together is not None:
                self._keep_company(together, should_stop)
        return [row.sampled(self.version) for row in rows]

    def _answer(
        self,
        rows: list[Answering],
        temperature: float,
        recorded: Recorded | None,
        together: Ranks | None,
        should_stop: Callable[[], bool],
    ) -> None:
        """Fill ``rows``, all of one batch, until each is finished."""
        device = device_of(self._model)
        input_ids, mask = _left_padded([row.request.prompt for row in rows], device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        base = base_of(self._model)
        cache = DynamicCache(config=base.config)
        lengths = [len(row.request.prompt) for row in rows]
        # As an index: a slice would be a view that the head multiplies in another order than the
        # rows that training gathers.
        last = torch.tensor([-1], device=device)
        while True:
            _meet(together, should_stop, device, working=True)
            logits = self._model(
                input_ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=last,
            ).logits[:, -1]
            if recorded is not None:
                choices = recorded.take().unflatten(0, tuple(input_ids.shape))
                for row, length, chosen in zip(rows, lengths, choices, strict=True):
                    row.choices.append(chosen[-length:])
            tokens, logps = choose(
                logits, temperature, [row.draws for row in rows], base.loss_backend
            )
            for row, token, logp in zip(rows, tokens.tolist(), logps, strict=True):
                row.token_ids.append(token)
                row.logps.append(logp)
            going = [place for place, row in enumerate(rows) if not row.finished]
            if not going:
                return
            if len(going) < len(rows):
                kept = torch.tensor(going, device=device)
                rows = [rows[place] for place in going]
                tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
                cache.batch_select_indices(kept)
            lengths = [1] * len(rows)
            input_ids = tokens[:, None]
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
            positions = positions[:, -1:] + 1

    def _keep_company(self, together: Ranks, should_stop: Callable[[], bool]) -> None:
        """Compute along until all ranks are done: a spread model gathers its weights from all."""
        device = device_of(self._model)
        token = torch.full((1, 1), ENDOFTEXT, dtype=torch.int64, device=device)
        while _meet(together, should_stop, device, working=False):
            self._model(token, use_cache=False, logits_to_keep=1)


def _meet(
    together: Ranks | None,
    should_stop: Callable[[], bool],
    device: torch.device,
    *,
    working: bool,
) -> bool:
    """Return whether any rank still answers.

    Raises:
        Stopped: Somebody is to stop.
    """
    stopped = should_stop()
    if together is not None:
        working, stopped = together.any(working, stopped, device=device)
    if stopped:
        raise Stopped
    return working


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask ``[B, S]``, padded on the left so that all rows end together."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), ENDOFTEXT, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
