"""The sampler of a served model: an OpenAI-compatible vLLM, asked by token ids.

Every answer is held against the weights that were handed over last: by the name of the adapter, or
by the label that the server tells of each token. An answer of others is sampled again and counted;
one that is not what was asked for ends the run in a sentence that says what the server answered.

Draws come from the server: the seed of a request is sent, and vLLM draws from it alone; what is
computed beside it moves the last bits of the logits, unless ``VLLM_BATCH_INVARIANT=1`` is set
there.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from gptoss_tune.distributed import gather_over_ranks, rank
from gptoss_tune.errors import GptossTuneError, MachineError, say_once
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.rollout.sampler import Request, Sampled
from gptoss_tune.rollout.server.answers import (
    OddAnswer,
    Sizes,
    Weights,
    completion_fields,
    other_weights,
    read_answer,
)
from gptoss_tune.rollout.server.completions import CompletionServer, TryAgain
from gptoss_tune.rollout.server.connection import CutOff, Exchanges
from gptoss_tune.rollout.server.handover import Handover

_POLL_SECONDS = 0.1


class ServerSampler:
    """Samples with a server; see ``rollout.sampler.Sampler``.

    Attributes:
        name: As in the recipe.
        version: Of the weights it samples with; -1 before the first ones were handed over.
        counts: Of ``tried_again`` (no answer, busy, broken) and ``other_weights`` so far.
    """

    name = "server"

    def __init__(
        self,
        server: CompletionServer,
        handover: Handover,
        sizes: Sizes,
        *,
        save: Callable[[Path], None],
        folder: Path,
        concurrency: int,
        wants_choices: bool = False,
        tries: int = 4,
        pause_s: float = 2.0,
        seconds: float = 120.0,
        seconds_per_token: float = 0.25,
    ) -> None:
        """Sample with ``server``.

        Args:
            server: Who is asked.
            handover: How it gets weights.
            sizes: Of the model.
            save: Writes the adapter and its record to a new folder; every rank calls it, the first
                one writes.
            folder: Where that is done; the server reads it too.
            concurrency: Requests under way at a time.
            wants_choices: Say once where the server does not tell its experts.
            tries: For one answer, the first included.
            pause_s: Before the second try; twice as long before each further one.
            seconds: For one answer.
            seconds_per_token: And more for each token that it may have.
        """
        self.version, self.counts = -1, Counter[str]()
        self._server, self._handover, self._sizes = server, handover, sizes
        self._save, self._folder, self._concurrency = save, folder, concurrency
        self._wants_choices, self._tries, self._pause_s = wants_choices, tries, pause_s
        self._seconds, self._seconds_per_token = seconds, seconds_per_token
        self._weights: Weights | None = None
        self._processed: bool | None = None

    def update(self, version: int) -> None:
        """Hand the trainer's weights over; every rank calls it, the first one does it.

        Raises:
            CheckpointError, MachineError: On all ranks, where the server did not take them.
        """
        staging = self._folder / f".saved-v{version}"
        weights: Weights | None = None
        error: GptossTuneError | None = None
        if rank() == 0:
            shutil.rmtree(staging, ignore_errors=True)
        try:
            self._save(staging)
            if rank() == 0:
                weights = self._handover.hand_over(staging, version)
        except GptossTuneError as raised:
            error = raised
        finally:
            if rank() == 0:
                shutil.rmtree(staging, ignore_errors=True)
        weights, told = gather_over_ranks((weights, None if error is None else str(error)))[0]
        if error is not None:
            raise error
        if told is not None:
            raise MachineError(told)
        assert weights is not None
        self._weights, self.version = weights, version

    def sample(
        self,
        requests: Sequence[Request],
        temperature: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Sampled]:
        """Return an answer for each request, in order; see ``Sampler``.

        Raises:
            Stopped: ``should_stop`` was true; it is asked ten times a second.
            MachineError: The server did not answer, refused, or answered something else.
        """
        assert self._weights is not None, "nothing was handed over"
        self._check_temperature(temperature)
        exchanges = Exchanges()
        weights = self._weights
        with ThreadPoolExecutor(max_workers=self._concurrency) as pool:
            asked = [
                pool.submit(self._answer, request, weights, temperature, exchanges)
                for request in requests
            ]
            try:
                self._await(asked, exchanges, should_stop)
            finally:
                exchanges.end()
                for one in asked:
                    one.cancel()
        found = [one.result() for one in asked]
        if self._wants_choices and any(one.choices is None for one in found):
            self._wants_choices = False
            say_once(
                "the server does not tell its experts, so they are not replayed in training; it "
                "does with --enable-return-routed-experts and VLLM_USE_V2_MODEL_RUNNER=1"
            )
        return found

    def close(self) -> None:
        """Nothing is held: the server keeps the weights that it has."""

    def _await(
        self,
        asked: Sequence[Future[Sampled]],
        exchanges: Exchanges,
        should_stop: Callable[[], bool],
    ) -> None:
        """Return when all are answered.

        Raises:
            Stopped: ``should_stop`` was true.
            MachineError: One failed.
        """
        missing: set[Future[Sampled]] = set(asked)
        while missing:
            if should_stop():
                raise Stopped
            done, missing = wait(missing, _POLL_SECONDS, FIRST_EXCEPTION)
            for one in done:
                one.result()
            exchanges.end_late()

    def _answer(
        self, request: Request, weights: Weights, temperature: float, exchanges: Exchanges
    ) -> Sampled:
        """Return one answer, asked for until it is one, or has been asked for often enough.

        Raises:
            CutOff: The exchanges were ended.
            MachineError: What the server answered at last.
        """
        fields = completion_fields(request, weights, temperature)
        seconds = self._seconds + self._seconds_per_token * request.max_new_tokens
        said, pause = "", self._pause_s
        for attempt in range(self._tries):
            if attempt:
                exchanges.pause(pause)
                pause *= 2
            if exchanges.over:
                raise CutOff
            try:
                answer = self._server.complete(fields, exchanges, seconds)
                other = other_weights(answer, weights)
                if other is None:
                    return read_answer(answer, request, weights, self._sizes)
            except TryAgain as error:
                said, counted = str(error), "tried_again"
            except OddAnswer as error:
                raise self._server.no_answer(str(error)) from None
            else:
                held = weights.label or weights.model
                said, counted = f"expected an answer of {held}, got one of {other}", "other_weights"
            self.counts[counted] += 1
        raise self._server.no_answer(f"{said}; tried {self._tries} times")

    def _check_temperature(self, temperature: float) -> None:
        """Refuse log-probabilities of another distribution than the tokens are drawn from.

        Raises:
            MachineError: The server tells those before the temperature, and it is not 1.
        """
        if temperature in (0, 1) or self._processed:
            return
        mode = self._server.logprobs_mode()
        if mode != "processed_logprobs":
            raise MachineError(
                f"{self._server.url}: tells {mode or 'no'} log-probabilities; at temperature "
                f"{temperature:g} they have to be those of the drawn tokens: start it with "
                "--logprobs-mode processed_logprobs, or sample at temperature 1"
            )
        self._processed = True
