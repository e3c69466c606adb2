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
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import DynamicCache

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.generate import Stopped, evaluating
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.harmony.vocabulary import ENDOFTEXT
from gptoss_tune.model.parallel.sharding import is_sharded
from gptoss_tune.model.routing import Recorded, recording
from gptoss_tune.rollout.draws import choose, generator
from gptoss_tune.rollout.sampler import Request, Sampled


@dataclass
class _Row:
    """One request while it is answered.

    Attributes:
        number: Of the request.
        request: It.
        draws: Its random numbers.
        token_ids: Sampled so far.
        logps: Their log-probabilities, scalars on the device.
        choices: ``[tokens, L, K]`` of every forward pass.
    """

    number: int
    request: Request
    draws: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logps: list[Tensor] = field(default_factory=list)
    choices: list[Tensor] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether its last token ended it, or it is as long as it may be."""
        ids = self.token_ids
        return bool(ids) and (ids[-1] in STOP_IDS or len(ids) >= self.request.max_new_tokens)


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
        wrapped = isinstance(model, DistributedDataParallel)
        self._model: Any = model.module if wrapped else model
        self._batch, self._replay = batch, replay

    def update(self, version: int) -> None:
        """Note the number of the weights; they are the trainer's own."""
        self.version = version

    def close(self) -> None:
        """Nothing is held between two calls of ``sample``."""

    @torch.no_grad()
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
        _check(requests)
        together = Ranks() if is_sharded(self._model) else None
        # Longest first: a batch holds prompts of like length, and too little memory shows at once.
        order = sorted(range(len(requests)), key=lambda n: -len(requests[n].prompt))
        done: dict[int, _Row] = {}
        narrow = self._model_config.dtype == torch.bfloat16
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            # As in training: factors and fp32 values multiply in bf16.
            stack.enter_context(
                torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=narrow)
            )
            recorded = stack.enter_context(recording(self._model)) if self._replay else None
            for start in range(0, len(order), self._batch):
                rows = [
                    _Row(n, requests[n], generator(requests[n].seed))
                    for n in order[start : start + self._batch]
                ]
                self._answer(rows, temperature, recorded, together, should_stop)
                done |= {row.number: row for row in rows}
            if together is not None:
                self._keep_company(together, should_stop)
        return [self._sampled(done[n]) for n in range(len(requests))]

    def _answer(
        self,
        rows: list[_Row],
        temperature: float,
        recorded: Recorded | None,
        together: Ranks | None,
        should_stop: Callable[[], bool],
    ) -> None:
        """Fill ``rows``, all of one batch, until each is finished."""
        input_ids, mask = _left_padded([row.request.prompt for row in rows], self._device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model_config)
        lengths = [len(row.request.prompt) for row in rows]
        while True:
            _meet(together, should_stop, self._device, working=True)
            logits = self._model(
                input_ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if recorded is not None:
                choices = recorded.take().unflatten(0, tuple(input_ids.shape))
                for row, length, chosen in zip(rows, lengths, choices, strict=True):
                    row.choices.append(chosen[-length:])
            tokens, logps = choose(logits, temperature, [row.draws for row in rows])
            for row, token, logp in zip(rows, tokens.tolist(), logps, strict=True):
                row.token_ids.append(token)
                row.logps.append(logp)
            going = [place for place, row in enumerate(rows) if not row.finished]
            if not going:
                return
            if len(going) < len(rows):
                kept = torch.tensor(going, dtype=torch.int64, device=self._device)
                rows = [rows[place] for place in going]
                tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
                cache.batch_select_indices(kept)
            lengths = [1] * len(rows)
            input_ids = tokens[:, None]
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
            positions = positions[:, -1:] + 1

    def _keep_company(self, together: Ranks, should_stop: Callable[[], bool]) -> None:
        """Compute along until all ranks are done: a spread model gathers its weights from all."""
        token = torch.full((1, 1), ENDOFTEXT, dtype=torch.int64, device=self._device)
        while _meet(together, should_stop, self._device, working=False):
            self._model(token, use_cache=False, logits_to_keep=1)

    def _sampled(self, row: _Row) -> Sampled:
        choices = torch.cat(row.choices).cpu().numpy() if self._replay else None
        logps = torch.stack(row.logps).float().cpu().numpy()
        return Sampled(tuple(row.token_ids), logps.astype(np.float32), choices, self.version)

    @property
    def _model_config(self) -> Any:
        model = self._model
        return (model.get_base_model() if hasattr(model, "get_base_model") else model).config

    @property
    def _device(self) -> torch.device:
        # The embeddings may wait in host memory, and lm_head as well; the final norm does not.
        named = self._model.named_parameters()
        return next(p.device for name, p in named if name.endswith("model.norm.weight"))


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


def _check(requests: Sequence[Request]) -> None:
    for number, request in enumerate(requests):
        if not request.prompt or request.max_new_tokens < 1:
            raise ValueError(
                f"request {number} has {len(request.prompt)} tokens of prompt and may have "
                f"{request.max_new_tokens} sampled; both need to be 1 or more"
            )


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask ``[B, S]``, padded on the left so that all rows end together."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), ENDOFTEXT, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
