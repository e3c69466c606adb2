"""Answers of the model that is being trained, by its own forward pass with a cache.

The loop is a few lines of our own instead of transformers' ``generate``: it goes through the same
``model(...)`` call that DDP, FSDP and autocast wrap, all ranks stay within one token of each other,
a signal ends it, and tokens are drawn from generators of its own, so that an evaluation leaves the
run's random state where it was. The tests hold it against ``generate`` of plain transformers.

B prompts, S tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import DynamicCache

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.answering.sampling import Sampling
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.harmony.vocabulary import ENDOFTEXT
from gptoss_tune.model.parallel.sharding import gather_nothing


@dataclass(frozen=True)
class Generation:
    """How to answer.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token.
        batch_size: Prompts at a time.
        seed: Of the drawn tokens; each prompt has its own draws, whatever the batch.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    batch_size: int = 8
    seed: int = 0


class Stopped(Exception):
    """Somebody asked the run to stop in the middle of an evaluation."""


@torch.no_grad()
def answer(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    ranks: Ranks,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """Return the generated ids of each prompt, up to and including the token that ended it.

    Args:
        model: A ``GptOssForTuning``, bare, adapted or sharded, in evaluation mode.
        prompts: Ids up to ``<|start|>assistant``; the same on all ranks.
        generation: How.
        ranks: Who answers which.
        should_stop: Asked before each token, on every rank.

    Raises:
        Stopped: On all ranks, when ``should_stop`` was true on one.
    """
    if not prompts:
        return []
    # Longest first: a batch holds prompts of like length, and too little memory shows at once.
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    mine = ranks.share(order)
    found: list[list[int]] = []
    sampling = Sampling(generation.max_new_tokens, generation.temperature)
    for start in range(0, len(mine), generation.batch_size):
        batch = mine[start : start + generation.batch_size]
        draws = [_generator(generation.seed * 1_000_003 + n) for n in batch]
        asked = [prompts[n] for n in batch]
        found += _answer_batch(model, asked, sampling, draws, ranks, should_stop)
    by_order = dict(zip(order, ranks.ordered(found, len(order)), strict=True))
    return [by_order[n] for n in range(len(prompts))]


@torch.no_grad()
def answer_batches(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int,
) -> Iterator[tuple[int, list[int]]]:
    """Yield the number and the generated ids of each prompt, a batch at a time, longest first.

    Greedy, they are those of ``answer``. What is drawn for a prompt depends on the seed and on its
    own tokens: prompts beside it, or their order, draw nothing else.

    Args:
        model: As in ``answer``; this process alone has it.
        prompts: Ids up to ``<|start|>assistant``.
        sampling: How.
        batch_size: Prompts at a time.
    """
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    device, narrow = _device(model), _config(model).dtype == torch.bfloat16
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        draws = [_generator(_own_seed(prompts[n], sampling.seed)) for n in batch]
        # As in training: factors and fp32 values multiply in bf16.
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=narrow):
            found = _answer_batch(
                model, [prompts[n] for n in batch], sampling, draws, Ranks(), lambda: False
            )
        yield from zip(batch, found, strict=True)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)


def _own_seed(prompt: Sequence[int], seed: int | None) -> int:
    """Return a seed of a prompt's own; ``None`` draws others each time."""
    if seed is None:
        return torch.seed()
    digest = hashlib.blake2b(repr((seed, list(prompt))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _answer_batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    draws: Sequence[torch.Generator],
    ranks: Ranks,
    should_stop: Callable[[], bool],
) -> list[list[int]]:
    device = _device(model)
    input_ids, mask = _left_padded(prompts, device)
    cache = DynamicCache(config=_config(model))
    stops = torch.tensor(STOP_IDS, device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    answers: list[Tensor] = []
    for _ in range(sampling.max_new_tokens):
        logits = model(
            input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        chosen = _choose(logits.float(), sampling.temperature, draws, sampling.top_p)
        chosen = torch.where(finished, ENDOFTEXT, chosen)
        answers.append(chosen)
        finished = finished | torch.isin(chosen, stops)
        unfinished, stopped = ranks.any(~finished.all(), should_stop(), device=device)
        if stopped:
            raise Stopped
        if not unfinished:
            break
        input_ids = chosen[:, None]
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
        positions = positions[:, -1:] + 1
    return [_until_stop(ids) for ids in torch.stack(answers, dim=1).tolist()]


def stream_tokens(
    model: nn.Module,
    prompt: Sequence[int],
    sampling: Sampling,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Yield the generated ids of one prompt as they come, the one that ends the answer included.

    Greedy, they are those of ``answer``. Each step is a call of its own, so whoever iterates may
    wait between two, in another thread too.

    Args:
        model: As in ``answer``.
        prompt: Ids up to ``<|start|>assistant``.
        sampling: How.
        should_stop: Asked before each token; true ends the answer.
    """
    device, seed = _device(model), sampling.seed
    draws = torch.Generator()
    draws.seed() if seed is None else draws.manual_seed(seed % 2**63)
    cache = DynamicCache(config=_config(model))
    input_ids, done = list(prompt), 0
    for _ in range(sampling.max_new_tokens):
        if should_stop():
            return
        logits = _next_logits(model, input_ids, done, cache, device)
        (token,) = _choose(logits, sampling.temperature, [draws], sampling.top_p).tolist()
        yield token
        if token in STOP_IDS:
            return
        done += len(input_ids)
        input_ids = [token]


@torch.no_grad()
def _next_logits(
    model: nn.Module, ids: Sequence[int], done: int, cache: DynamicCache, device: torch.device
) -> Tensor:
    """Return ``[1, V]`` fp32 after ``ids``, of which ``done`` tokens before are in ``cache``."""
    dtype = _config(model).dtype
    # As in training: factors and fp32 values multiply in bf16.
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(
            torch.tensor([list(ids)], device=device),
            position_ids=torch.arange(done, done + len(ids), device=device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
    return logits[:, -1].float()


def _choose(
    logits: Tensor, temperature: float, draws: Sequence[torch.Generator], top_p: float = 1.0
) -> Tensor:
    """Return one token ``[B]`` for ``logits [B, V]``, each row by its own generator."""
    if temperature == 0:
        return logits.argmax(-1)
    shares = (logits / temperature).softmax(-1).cpu()
    if not torch.isfinite(shares).all():  # the guard judges a model that computes NaN, not this
        return logits.argmax(-1)
    if top_p < 1:
        ordered, ids = shares.sort(dim=-1, descending=True)
        # A token goes where those before it have the mass already; the likeliest always stays.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        ordered[..., 0] = ordered[..., 0].clamp(min=torch.finfo(ordered.dtype).tiny)
        shares = torch.zeros_like(shares).scatter(-1, ids, ordered)
    drawn = [torch.multinomial(s, 1, generator=g) for s, g in zip(shares, draws, strict=True)]
    return torch.cat(drawn).to(logits.device)


def _until_stop(ids: list[int]) -> list[int]:
    ends = [n for n, token in enumerate(ids) if token in STOP_IDS]
    return ids[: ends[0] + 1] if ends else ids


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask ``[B, S]``, padded on the left so that all rows end together."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), ENDOFTEXT, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _device(model: nn.Module) -> torch.device:
    # The embeddings may wait in host memory, and lm_head as well; the final norm does not.
    return next(p.device for n, p in model.named_parameters() if n.endswith("model.norm.weight"))


def _config(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.config


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own afterwards.

    What a spread model gathered for its forward passes is given up at the end.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        gather_nothing(model)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let ``model`` be its base: no adapter acts, and nothing else changes.

    PEFT's own ``disable_adapter`` takes ``requires_grad`` from the factors and gives it back; a
    sharded parameter that is first gathered in between would stay without.
    """
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def is_adapted(model: nn.Module) -> bool:
    """Return whether ``model`` has adapters to leave out."""
    return any(isinstance(m, BaseTunerLayer) for m in model.modules())
