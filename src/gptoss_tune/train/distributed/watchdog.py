"""The watchdog of a run's ranks: a rank that is lost or stalls ends all, with its name.

A collective waits for a frozen rank as long as its process group allows, and then says that it
timed out, not who was missing. So the process group is given a day, which data rendered on rank 0
may well take, and a thread of each rank watches instead: every second it publishes a sign of life
through the store of the process group and reads those of the others. When one has been silent or
behind for ``distributed.timeout_seconds``, or none of them has moved for that time and the time
that a slow disk takes to write one file, it says which and ends its process. It ends it hard,
because the main thread is inside a collective, where no exception reaches it; checkpoints are
complete or absent at any moment, so nothing is lost.

Rejected: a short timeout of the process group (kills slow starts and long saves, names nobody) and
``monitored_barrier`` (gloo only, and a barrier more in every step).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.error_hints import cause_of
from gptoss_tune.errors import GptossTuneError, MachineError, RankLost, say_once
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import update_record
from gptoss_tune.train.distributed.heartbeat import (
    Failure,
    Heartbeat,
    Phase,
    StallDetector,
    place_of,
    stack_of,
    this_host,
)

JOIN_TIMEOUT = timedelta(minutes=10)
"""How long the ranks wait for each other to come."""
COLLECTIVE_TIMEOUT = timedelta(days=1)
"""How long a collective waits by itself; the watch ends a run long before."""
_SAVED_BYTES = 8
"""Of the largest file of a checkpoint for each trained value: Adam's two moments."""
_SLOWEST_DISK = 20e6
"""Bytes per second; a disk that is slower is taken for one that hangs."""
_POLL_S = 1.0
_GRACE_S = 3.0
_BLAME_S = 15.0
_SILENCE_AFTER_A_BREAK_S = 8.0


def join() -> PartialState:
    """Join the process group of the run and return this process's place in it.

    Raises:
        MachineError: Not all ranks came within ten minutes.
    """
    try:
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=JOIN_TIMEOUT)
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise MachineError(cause_of(error) or str(error)) from error
        world = os.environ.get("WORLD_SIZE", "?")
        address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise MachineError(
            f"the {world} processes of this run did not find each other at {address} within "
            f"{JOIN_TIMEOUT.seconds} s ({_first_line(error)}); check that all of them were started "
            "and that the address is reachable from every machine"
        ) from error
    if state.num_processes > 1:
        dist.distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT)
    return state


@contextlib.contextmanager
def watched(state: PartialState, timeout_s: float, run: Path) -> Iterator[Watchdog]:
    """Watch the ranks while the body runs; a lost rank ends it on all of them.

    Args:
        state: This process's place, from ``join``.
        timeout_s: Seconds a rank may be silent, or behind in a training step.
        run: The run's folder, in whose record rank 0 notes how it ended.

    Raises:
        RankLost: Another rank was killed, or left with an error.
    """
    watch = Watchdog(state, timeout_s, run)
    watch.start()
    try:
        yield watch
    except GptossTuneError as error:
        watch.leave(str(error), error.exit_code)
        raise
    except RuntimeError as error:
        lost = watch.blame() if _is_of_communication(error) else None
        if lost is None:
            watch.leave(f"{type(error).__name__}: {_first_line(error)}", 1)
            raise
        watch.note(lost)
        raise RankLost(watch.message(lost), exit_code=lost.code) from error
    except BaseException as error:
        said = _first_line(error) or type(error).__name__
        watch.leave(said, getattr(error, "exit_code", 1))
        raise
    finally:
        watch.close()


class Watchdog(TrainerCallback):
    """Publish this rank's signs of life and judge those of the others.

    As a callback of the trainer it learns how far the training loop is. With one process it does
    nothing.
    """

    def __init__(self, state: PartialState, timeout_s: float, run: Path) -> None:
        """Watch the ranks of ``state``; see ``watched``."""
        self._rank, self._world = state.process_index, state.num_processes
        self._timeout_s, self._run = timeout_s, run
        self._poll_s = min(_POLL_S, timeout_s / 5)
        self._judge = StallDetector(timeout_s)
        self._main = threading.main_thread().ident or 0
        self._host, self._pid = this_host(), os.getpid()
        self._beat = self._marks = self._step = 0
        self._moves, self._stack = 0, stack_of(self._main)
        self._marked = self._moved = time.monotonic()
        self._phase: Phase = "starting"
        self._left: tuple[str, int] | None = None
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._answered = time.monotonic()
        self._ended = self._lost_store = False
        self._store: Any = None
        self._found: Failure | None = None
        self._blaming = self._all_seen = False

    def start(self) -> None:
        """Begin to watch, as every rank does."""
        if self._world == 1:
            return
        # A store's connection answers one thread at a time, and a waiting main thread holds it.
        store: Any = dist.distributed_c10d._get_default_store().clone()  # pyright: ignore[reportAttributeAccessIssue]
        # The signs of an earlier run of these processes stay in the store, also why it was left.
        run = store.add(f"watched by rank {self._rank}", 1)
        self._store = dist.PrefixStore(f"ranks of run {run}", store)
        self._store.set_timeout(timedelta(seconds=self._timeout_s))
        self._publish()
        self._threads = [
            threading.Thread(target=body, name="rank watch", daemon=True)
            for body in (self._watch, self._watch_the_store)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop to watch; rank 0, whose process keeps the store, waits until all others did."""
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=2 * self._poll_s)
        if not self._threads or self._lost_store:
            return
        if self._found is not None:
            self._let_others_judge()
            return
        self._ended = True
        with contextlib.suppress(dist.DistError):  # the others are gone already
            self._publish()
            deadline = time.monotonic() + _GRACE_S
            while self._rank == 0 and time.monotonic() < deadline:
                if all(sign.ended for sign in self._read().values()):
                    return
                time.sleep(self._poll_s / 5)

    def leave(self, reason: str, code: int) -> None:
        """Tell the others, with the next sign, why this rank ends early."""
        self._left = (reason, code)

    def blame(self) -> Failure | None:
        """Return who is to blame for a collective that failed, after a look at all signs.

        A connection broke, so a few seconds of silence say as much as the whole timeout otherwise.
        """
        if not self._threads:
            return None
        self._blaming = True
        self._judge.timeout_s = min(self._timeout_s, _SILENCE_AFTER_A_BREAK_S)
        deadline = time.monotonic() + min(_BLAME_S, self._timeout_s + 2 * self._poll_s)
        while self._found is None and time.monotonic() < deadline:
            time.sleep(self._poll_s / 5)
        return self._found

    def message(self, verdict: Failure) -> str:
        """Return what the user is told: who, where the run stands, and what to do."""
        return (
            f"{verdict.reason}; rank {self._rank} stops after step {self._step}. The checkpoints "
            f"in {self._run} are complete: the same command continues from the newest"
        )

    def note(self, verdict: Failure) -> None:
        """Write into the run's record who was lost."""
        if self._rank == 0 and RunFolder(self._run).record.exists():
            with contextlib.suppress(GptossTuneError):  # the disk may be what is lost
                update_record(self._run, status="stopped", reason=verdict.reason)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note where a resumed run starts, and how long a slow disk may write what trains."""
        self._step = state.global_step
        trained = sum(p.numel() for p in kwargs["model"].parameters() if p.requires_grad)
        self._judge.write_s = trained * _SAVED_BYTES / _SLOWEST_DISK

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark a step's start, after its batch was fetched; the first step may take its time."""
        self._mark("training" if self._phase != "starting" else "starting")

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the end of a micro-batch."""
        self._mark(self._phase)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the end of the last micro-batch."""
        self._mark(self._phase)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the update; what is asked at a step's end may take one rank longer."""
        self._mark("between steps")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark a step's end; an evaluation or a save that follows may take one rank longer."""
        self._step = state.global_step
        waits = control.should_save or control.should_evaluate or control.should_training_stop
        self._mark("between steps" if waits else "training")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note a batch of an evaluation."""
        self.note_progress()

    def note_progress(self) -> None:
        """Note that something between two steps goes on."""
        self._moves += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the last step's end; the adapter's write and the last evaluations follow."""
        self._mark("ending")

    def _mark(self, phase: Phase) -> None:
        self._marks += 1
        self._phase, self._marked = phase, time.monotonic()

    def _sign(self) -> Heartbeat:
        reason, code = self._left or (None, 0)
        stack = stack_of(self._main)
        if stack != self._stack:
            self._moves, self._stack, self._moved = self._moves + 1, stack, time.monotonic()
        return Heartbeat(
            self._beat,
            self._marks,
            self._phase,
            self._step,
            self._place(),
            self._host,
            self._pid,
            self._moves,
            self._ended,
            reason,
            code,
        )

    def _place(self) -> str:
        """Return where the loop stands once it stands still; a running one is not looked into."""
        since = self._marked if self._phase == "training" else self._moved
        still = time.monotonic() - since > self._timeout_s / 4
        return place_of(self._main) if still and self._phase != "starting" else ""

    def _publish(self) -> None:
        self._beat += 1
        self._store.set(str(self._rank), self._sign().to_json())

    def _read(self) -> dict[int, Heartbeat]:
        ranks = list(range(self._world))
        if not self._all_seen:  # a key that is not there yet would be waited for
            ranks = [rank for rank in ranks if self._store.check([str(rank)])]
            self._all_seen = len(ranks) == self._world
        found = self._store.multi_get([str(rank) for rank in ranks])
        return {rank: Heartbeat(**json.loads(raw)) for rank, raw in zip(ranks, found, strict=True)}

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                self._publish()
                signs = self._read()
            except dist.DistError as error:
                self._act(self._without_store(_first_line(error)))
                return
            self._answered = time.monotonic()
            verdict = self._judge.verdict(signs, self._answered)
            if verdict is not None:
                self._act(verdict)
                return
            self._closed.wait(self._poll_s)
            if time.monotonic() - self._answered > self._poll_s + self._timeout_s / 2:
                self._judge.forget()  # this process was stopped itself

    def _watch_the_store(self) -> None:
        """See that the store answers: a read from a frozen process never ends by itself."""
        asleep = time.monotonic()
        while not self._closed.wait(self._poll_s):
            now = time.monotonic()
            if now - asleep > self._poll_s + self._timeout_s / 2:
                self._answered = now  # this process was stopped itself
            asleep = now
            if now - self._answered > self._judge.timeout_s:
                self._act(self._without_store(f"no answer for {self._judge.timeout_s:g} s"))
                return

    def _act(self, verdict: Failure) -> None:
        self._found = verdict
        # The main thread may be on its way out, by the same error or by the broken collective.
        out = self._closed.wait(_GRACE_S if verdict.left else self._poll_s / 2)
        if not out and not self._blaming:
            self._end(verdict)

    def _without_store(self, how: str) -> Failure:
        """Return the verdict when the store does not answer: its keeper is gone or frozen."""
        self._lost_store = True
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        keeper = "the launcher of the first machine" if agent else "rank 0"
        return Failure(
            () if agent else (0,),
            f"{keeper}, which keeps the list of all ranks, was killed or is frozen ({how})",
        )

    def _let_others_judge(self) -> None:
        """Keep the store a little longer, or the others would take rank 0 for the lost one."""
        if self._rank == 0:
            time.sleep(2 * self._poll_s)

    def _end(self, verdict: Failure) -> None:
        """Say why and end this process, whose main thread no exception can reach."""
        message = self.message(verdict)
        # The disk may be what hangs, and a write to it would never end.
        noting = threading.Thread(target=self.note, args=(verdict,), daemon=True)
        noting.start()
        noting.join(_GRACE_S)
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h")  # the progress bar had hidden the cursor
        say_once(f"stopped: {message}", aside=True)
        sys.stdout.flush()
        self._let_others_judge()
        os._exit(verdict.code)


def _is_of_communication(error: RuntimeError) -> bool:
    """Return whether a collective failed; gloo raises plain errors, which only their text tells."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection closed by peer", "connection reset")
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]
