"""Stopping between two steps: Ctrl-C and SIGTERM save a checkpoint and leave with exit code 75.

A signal only sets a flag. At the end of each step the flags of all ranks are added up, so that one
signal to any rank stops all of them at the same step, and the checkpoint is the one an ordinary
save would have written. A second Ctrl-C stops at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Stop the run at a step boundary after SIGINT or SIGTERM.

    Attributes:
        stopped: Whether the run was stopped by a signal, on this rank or another.
    """

    def __init__(self) -> None:
        """Listen from ``on_train_begin`` to ``on_train_end``."""
        self.stopped = False
        self._requested = False
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop, the others perhaps not yet."""
        return self._requested

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over both signals; Python allows that only in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in _SIGNALS}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if any rank was asked to."""
        if self._anyone_asked(args.device) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signals back."""
        self.close()

    def close(self) -> None:
        """Give the signals back, also when training ended in an error."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True

    def _anyone_asked(self, device: torch.device) -> bool:
        if not (dist.is_available() and dist.is_initialized()):
            return self._requested
        flag = torch.tensor(float(self._requested), device=device)
        dist.all_reduce(flag)
        return bool(flag > 0)
