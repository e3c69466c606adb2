"""The sampler ``batched``: requests come and go within one batch that never waits for the longest.

transformers' continuous batching plans the passes: which requests go on, which begin, and where
their keys and values lie in pages. What computes is the model that is being trained, its experts,
its attention (``paged_attention``) and its adapters, without a copy of a weight; what is drawn,
and with which random numbers, is decided as ``own`` does. So only the sums' order differs from
``own``: in fp32 the tokens are the same, unless two lie closer than the rounding of one product.
Everything runs in the calling thread, where autocast, a signal and the run's random state are what
they were; transformers' own loop runs in another thread and seeds the process.

Requests with the same prompt, a group's first turn, prefill it once: the first of them stops one
token before its end and is forked. (Pages cannot be shared across calls: those of a sliding window
are written again and again.) The cache is sized for the call and given back at its end.

N tokens of a prompt, L layers, K experts of a token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import __version__
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from gptoss_tune.errors import MachineError, say_once
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.evaluate.parse import STOP_IDS
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
from gptoss_tune.rollout.batched.paged_attention import PagedPass, Piece, paged
from gptoss_tune.rollout.batched.planner import processor_of
from gptoss_tune.rollout.draws import choose
from gptoss_tune.rollout.sampler import Request, Sampled

NEEDED = (5, 23)
"""The first transformers whose planner is asked for passes as it is here."""
_CHILD = "__child#"


class BatchedSampler:
    """Answers requests by continuous batching with the weights of a model in this process.

    Attributes:
        name: As in the recipe.
        version: Of the weights it samples with: the model's own, as they are.
    """

    name = "batched"

    def __init__(
        self, model: nn.Module, *, batch: int, replay: bool = True, pass_tokens: int = 8192
    ) -> None:
        """Sample from ``model``, which stays the caller's.

        Args:
            model: A ``GptOssForTuning`` after ``set_attention``, adapted or bare, in a DDP wrapper
                or not.
            batch: Sequences at a time.
            replay: Record the experts of every token.
            pass_tokens: Tokens of a forward pass at most; a longer prompt comes in pieces.

        Raises:
            MachineError: transformers is too old, or the model is spread with FSDP2: each rank has
                its own passes.
        """
        require_planner()
        self._model = unwrapped(model)
        if is_sharded(self._model):
            raise MachineError(
                "method.sampler batched answers with a whole model on each rank, and this one is "
                "spread over them with fsdp2; use sampler own, or distributed.strategy ddp"
            )
        self.version = 0
        self._batch, self._replay = batch, replay
        self._pass_tokens = max(pass_tokens, batch)
        self._told = False

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
            requests: Prompts; those of a group share theirs.
            temperature: Of the drawn tokens; 0 takes the likeliest.
            should_stop: Asked before each pass.

        Raises:
            ValueError: A request has no prompt, or may have no token.
            MachineError: The cache of the longest request does not fit into memory.
            Stopped: ``should_stop`` was true.
        """
        rows = begin(requests)
        if not rows:
            return []
        with (
            answering(self._model, record=self._replay) as recorded,
            paged(self._model),
        ):
            passes = _Passes(self._model, rows, self._batch, self._pass_tokens)
            self._tell_room(passes)
            with passes.stream():
                while passes.plan():
                    if should_stop():
                        raise Stopped
                    self._run(passes, temperature, recorded)
        return [row.sampled(self.version) for row in rows]

    def _tell_room(self, passes: _Passes) -> None:
        """Say once that fewer requests than asked for have room at a time."""
        if passes.room < passes.wanted and not self._told:
            self._told = True
            say_once(
                f"method.sampler batched: keys and values of {passes.wanted} requests of up to "
                f"{passes.longest:,} tokens do not fit beside the model, those of {passes.room} "
                "do: the others wait for them. For more at a time lower method.max_new_tokens or "
                "data.max_length"
            )

    def _run(self, passes: _Passes, temperature: float, recorded: Recorded | None) -> None:
        """Compute the planned pass and tell it what was drawn."""
        drawing = passes.drawing()
        inputs = passes.inputs()
        logits = self._model(**inputs, use_cache=False).logits[0]
        if recorded is not None:
            passes.record(recorded.take())
        tokens, logps = choose(
            logits[: len(drawing)],
            temperature,
            [row.draws for row in drawing],
            base_of(self._model).loss_backend,
        )
        passes.tell(tokens, logps)


def require_planner() -> None:
    """Refuse a transformers whose continuous batching is another one.

    Raises:
        MachineError: It is older than ``NEEDED``.
    """
    if tuple(int(part) for part in __version__.split(".")[:2]) < NEEDED:
        needed = ".".join(map(str, NEEDED))
        raise MachineError(
            f"method.sampler batched needs transformers {needed} or later, found {__version__}; "
            f"install one (pip install 'transformers>={needed}'), or use sampler own"
        )


class _Passes:
    """The forward passes that answer some requests: planned, laid out and told what came of them.

    A request has the number of its ``Answering`` as its name; one that was forked has its parent's
    and its place among the children, as transformers names it.

    Attributes:
        wanted: Requests at a time that were asked for and are there.
        room: Of them, those whose keys and values fit into memory.
        longest: Tokens that a request may have.
    """

    def __init__(self, model: Any, rows: list[Answering], batch: int, pass_tokens: int) -> None:
        """Size the cache and begin with nothing.

        Raises:
            MachineError: The longest request does not fit into memory.
        """
        self._batch, self._device = batch, device_of(model)
        self._groups = deque(_groups(rows, batch))
        longest = max(len(row.request.prompt) + row.request.max_new_tokens for row in rows)
        self.longest, self.wanted = longest, min(batch, len(rows))
        self._processor, self.room = processor_of(model, longest, self.wanted, pass_tokens)
        self._rows: dict[str, Answering] = {}
        self._unfinished: set[int] = set()

    def stream(self) -> Any:
        """Return the context in which passes are planned and computed, in the cache's order."""
        stream: Any = self._processor.inputs_and_outputs.compute_stream
        if stream is None:
            return nullcontext()
        stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(stream)

    def plan(self) -> bool:
        """Admit what there is room for and plan a pass; return whether anything is left to do."""
        while self._groups and (
            not self._unfinished or len(self._unfinished) + len(self._groups[0]) <= self._batch
        ):
            self._admit(self._groups.popleft())
        if not self._unfinished:
            return False
        if not self._processor.prepare_next_batch():
            raise RuntimeError(f"{len(self._unfinished)} requests wait and none can go on")
        return True

    def _admit(self, group: list[Answering]) -> None:
        request = group[0].request
        # Alone, or with one token, a prompt is not forked.
        shared = len(group) if len(request.prompt) > 1 else 1
        for start in range(0, len(group), shared):
            first, *others = group[start : start + shared]
            state = RequestState(
                request_id=str(first.number),
                initial_tokens=list(request.prompt),
                max_new_tokens=request.max_new_tokens,
                eos_token_id=list(STOP_IDS),
                num_children=len(others),
            )
            self._processor.scheduler.add_waiting_request(state)
            self._rows[state.request_id] = first
            for child, row in enumerate(others):
                self._rows[f"{state.request_id}{_CHILD}{child}"] = row
        self._unfinished |= {row.number for row in group}

    def inputs(self) -> dict[str, Any]:
        """Return what the model is called with for the planned pass."""
        made: dict[str, Any] = dict(self._processor.inputs_and_outputs.get_model_kwargs())
        names = ("cu_seq_lens_k", "max_length_k", "read_index", "write_index")
        pieces, place = [], 0
        for future in self._planned():
            length = future.query_length
            pieces.append(Piece(place, length, future.state.position_offset - length))
            place += length
        indices = {name: made[name] for name in names} | {"block_table": None}
        # One row is asked for where no request draws: an empty head is no head of some backends.
        wanted = max(1, len(self.drawing()))
        return {
            "input_ids": made["input_ids"].long(),
            "position_ids": made["position_ids"].long(),
            "logits_to_keep": made["logits_indices"][:wanted].long(),
            "paged": PagedPass(pieces, made["cache"], indices, self._device),
        }

    def drawing(self) -> list[Answering]:
        """Return the requests that draw a token in the planned pass, in its order."""
        return [self._rows[f.state.request_id] for f in self._planned() if f.has_new_token]

    def record(self, choices: Tensor) -> None:
        """Give the experts of a pass, ``[T, L, K]``, to the requests whose tokens they are of."""
        futures = self._planned()
        parts = choices.split([future.query_length for future in futures])
        for future, chosen in zip(futures, parts, strict=True):
            name = future.state.request_id
            row, past = self._rows[name], future.state.position_offset - future.query_length
            if row.chosen < past:  # it was forked: what came before was computed as its parent's
                parent = self._rows[name.split(_CHILD)[0]]
                row.choices, row.chosen = [torch.cat(parent.choices)[:past]], past
            # Where the cache was full a request may have had to come again from its beginning.
            row.choose(chosen[row.chosen - past :])

    def tell(self, tokens: Tensor, logps: Tensor) -> None:
        """Give the drawn tokens ``[n]`` and their log-probabilities to the requests that drew."""
        drawing, io = self.drawing(), self._processor.inputs_and_outputs
        for row, token, logp in zip(drawing, tokens.tolist(), logps, strict=True):
            row.token_ids.append(token)
            row.logps.append(logp)
        io.output_ids[0, : len(drawing)] = tokens
        self._processor.update_batch()
        self._unfinished -= {row.number for row in drawing if row.finished}

    def _planned(self) -> list[FutureRequestState]:
        """Return whose tokens the planned pass has, in the order of the row."""
        io: Any = self._processor.inputs_and_outputs
        return io.requests_in_batch


def _groups(rows: list[Answering], batch: int) -> list[list[Answering]]:
    """Return requests with the same prompt and length together, ``batch`` of them at most."""
    same: dict[tuple[tuple[int, ...], int], list[Answering]] = {}
    for row in rows:
        same.setdefault((row.request.prompt, row.request.max_new_tokens), []).append(row)
    return [
        group[start : start + batch]
        for group in same.values()
        for start in range(0, len(group), batch)
    ]
