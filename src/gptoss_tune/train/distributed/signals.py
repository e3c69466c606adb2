"""Signal handling: Ctrl-C, SIGTERM and their kin save a checkpoint and leave with exit code 75.

A terminal that closes sends SIGHUP; schedulers warn with SIGUSR1, SIGUSR2 or SIGXCPU before they
kill. Unhandled, each ends a process at once.

What a signal does depends on where the run is:

- before the first step nothing is worth keeping yet: the run ends at once, and says so if more than
  seconds of work are lost (``beginning_again``);
- between the first step and the last it sets a flag. At the end of each step the flags of all ranks
  are added up, so that one signal to any rank stops all of them at the same step, and the
  checkpoint is the one an ordinary save would have written;
- after the last step everything is trained: the adapter is saved, the last evaluation is left out,
  and the run ends as a finished one.

An evaluation is left at its next batch, whenever the signal comes: one may take longer than a
scheduler waits.

A second Ctrl-C stops at once. The alternative, saving inside the handler, saves in the middle of a
step: such a checkpoint cannot be continued exactly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.errors import RunInterrupted
from gptoss_tune.terminal import speaks
from gptoss_tune.train.distributed.start_processes import CHECKED
from gptoss_tune.train.distributed.stop_signals import stop_signals

_SAVES = "stopping after this step, a checkpoint is saved first"


class _StoppedAtOnce(BaseException):
    """A signal before the first step; no ``except Exception`` on the way may swallow it."""

    exit_code = RunInterrupted.exit_code


class EvaluationLeftOut(Exception):
    """A signal came during an evaluation on held-out data, on this rank or another."""


class StopOnSignal(TrainerCallback):
    """Stop the run after SIGINT, SIGTERM or one of their kin; a context manager around all of it.

    Attributes:
        stopped: Whether the run was stopped between two steps, by this rank's signal or another's.
    """

    def __init__(self) -> None:
        """Listen from ``__enter__`` to ``__exit__``."""
        self.stopped = False
        self._requested = False
        self._loading, self._signals = True, 0
        # torchrun, and accelerate through it, passes on the Ctrl-C that a terminal sends to all.
        # What `gptoss-tune train` starts is out of the terminal's reach, and gets it once.
        passed_on = "TORCHELASTIC_RUN_ID" in os.environ and CHECKED not in os.environ
        self._once = 2 if passed_on else 1
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()
        self._begins_again: str | None = None
        self._does = _SAVES

    def __enter__(self) -> StopOnSignal:
        """Take over the signals; Python allows that only in the main thread."""
        if threading.current_thread() is threading.main_thread():
            taken = stop_signals()
            self._previous = {number: signal.signal(number, self._request) for number in taken}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back.

        Raises:
            RunInterrupted: A signal ended the run before its first step.
        """
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if isinstance(error, _StoppedAtOnce):
            after = (
                "nothing was lost, the same command starts it again where it stands"
                if self._begins_again is None
                else f"the same command starts it again, and {self._begins_again}"
            )
            raise RunInterrupted(f"a signal ended the run before its next step; {after}") from None

    @contextlib.contextmanager
    def beginning_again(self, what: str) -> Iterator[None]:
        """Do work that a signal costs, and then say so; the first Ctrl-C is one like the others.

        Args:
            what: The next start does, as the end of a sentence.
        """
        self._begins_again = what
        yield
        self._begins_again = None

    @contextlib.contextmanager
    def answering(self, does: str) -> Iterator[None]:
        """Do work that a signal leaves at once, and let the answer to one say so.

        Args:
            does: The run does on a signal, after its name.
        """
        self._does = does
        try:
            yield
        finally:
            self._does = _SAVES

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop, the others perhaps not yet."""
        return self._requested

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for step boundaries from here on."""
        self._loading = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if any rank was asked to."""
        if self._anyone_asked(args.device) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the evaluation on held-out data, on all ranks, if any was asked to stop.

        Raises:
            EvaluationLeftOut: One was.
        """
        if self._anyone_asked(args.device):
            raise EvaluationLeftOut

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked from here
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._signals += 1
        at_once = self._loading and self._begins_again is None
        if number == signal.SIGINT and (self._signals > self._once or at_once):
            raise KeyboardInterrupt
        self._requested = True
        if self._loading:
            raise _StoppedAtOnce("a signal ended it before its next step")
        if self._signals == 1 and speaks():
            self._acknowledge(number)

    def _acknowledge(self, number: int) -> None:
        """Say that the signal was heard: a step may take minutes, and the checkpoint after it.

        Straight to the descriptor: the handler may have interrupted a write to the stream.
        """
        again = f"; {self._once} more Ctrl-C stop at once" if number == signal.SIGINT else ""
        again = again.replace("1 more Ctrl-C stop ", "another Ctrl-C stops ")
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        words = f"\n{name}: {self._does}{again}\n"
        if sys.stderr.isatty():
            words += "\n"  # which the progress bar takes for its own line and draws over
        with contextlib.suppress(OSError):
            os.write(2, words.encode())

    def _anyone_asked(self, device: torch.device) -> bool:
        if not (dist.is_available() and dist.is_initialized()):
            return self._requested
        flag = torch.tensor(float(self._requested), device=device)
        dist.all_reduce(flag)
        return bool(flag > 0)
