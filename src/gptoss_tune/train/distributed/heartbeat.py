"""Heartbeats of the ranks, and the detector of a stall: which rank holds up the others.

A sign holds a counter that a thread of the rank raises (the process runs) and a counter that its
training loop raises at fixed points of a step (the loop goes on). A frozen process stops both, a
hanging loop the second one only. Times are taken by the judging rank's own clock, so the clocks of
two machines need not agree, and a judge that slept itself starts its times anew.

Inside a training step a loop is judged by how far it is behind the others: a step may take long, as
long as it takes all of them so. Evaluating and saving may take one rank longer than any timeout
while the others rightly wait for it, so between steps and at the end only a run in which no rank
moves is judged: no batch, token or tensor is done with, and the main thread of each stands where it
stood. That is a disk that hangs under the one that writes, or ranks that wait for each other at
different places. Before the first step nothing is judged but life: rendering data and compiling
kernels happen in other processes, while the main thread stands still.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from gptoss_tune.errors import RunInterrupted

_WAITING = ("distributed_c10d.py", "in _engine_run_backward")
"""Where in torch a rank stands that waits for others: in a collective, or in DDP's backward."""
Phase = Literal["starting", "training", "between steps", "ending"]


@dataclass(frozen=True)
class Heartbeat:
    """What a rank says of itself.

    Attributes:
        beat: Raised by a thread of the rank, whatever its training loop does.
        marks: Raised by the training loop at fixed points of a step, the same on every rank.
        phase: What the rank is doing; its loop is judged in "training" only.
        step: Optimizer steps it has finished.
        place: Where its main thread stands, ``file:line in function``; empty while it goes on.
        host: Machine and process namespace: where ``pid`` means something.
        pid: Its process.
        moves: Raised by what goes on between steps, such as a token of an evaluation, and whenever
            its main thread stands elsewhere than at the last sign.
        ended: Whether it publishes no more signs.
        left: Why it ended before the others; ``None`` while it runs and after a good end.
        code: Exit code it left with.
    """

    beat: int
    marks: int
    phase: Phase
    step: int
    place: str
    host: str
    pid: int
    moves: int = 0
    ended: bool = False
    left: str | None = None
    code: int = 0

    def to_json(self) -> str:
        """Return the sign as one line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Failure:
    """Why the run cannot go on.

    Attributes:
        ranks: Who holds it up.
        reason: One sentence that names them.
        code: Exit code of the run.
        left: Whether they left by themselves, with an error of which they spoke.
    """

    ranks: tuple[int, ...]
    reason: str
    code: int = RunInterrupted.exit_code
    left: bool = False


class StallDetector:
    """Hold the newest signs against what was seen before.

    Attributes:
        timeout_s: Seconds a rank may be silent, or behind the others.
        write_s: Seconds that writing one file may take besides: nothing moves while it is synced.
    """

    def __init__(self, timeout_s: float) -> None:
        """Start with no rank seen."""
        self.timeout_s, self.write_s = timeout_s, 0.0
        self._beats: dict[int, tuple[int, float]] = {}
        self._behind: dict[int, tuple[int, float]] = {}
        self._still: tuple[dict[int, tuple[int, int]], float] = ({}, 0.0)

    def forget(self) -> None:
        """Start all times anew; for a judge that did not run for a while itself."""
        self._beats.clear()
        self._behind.clear()
        self._still = ({}, 0.0)

    def verdict(self, signs: dict[int, Heartbeat], now: float) -> Failure | None:
        """Return who holds up the run at ``now`` seconds of a monotonic clock, if anyone does."""
        left = {rank: sign for rank, sign in signs.items() if sign.left is not None}
        if left:
            first = min(left)
            sign = left[first]
            return Failure(tuple(left), f"rank {first} left the run: {sign.left}", sign.code, True)
        signs = {rank: sign for rank, sign in signs.items() if not sign.ended}
        gone = [r for r, s in signs.items() if s.host == this_host() and not is_running(s.pid)]
        if gone:
            ended = "its process is gone" if len(gone) == 1 else "their processes are gone"
            return Failure(tuple(gone), f"{named(gone)} was killed or crashed: {ended}")
        silent = [rank for rank, sign in signs.items() if self._silent(rank, sign, now)]
        if silent:
            places = "; ".join(f"rank {r} {_whereabouts(signs[r])}" for r in silent)
            return Failure(
                tuple(silent),
                f"{named(silent)} gave no sign of life for {self.timeout_s:g} s: frozen, without "
                f"a processor, or cut off from the network ({places})",
            )
        furthest = max((sign.marks for sign in signs.values()), default=0)
        stuck = [r for r, s in signs.items() if self._stuck(r, s, furthest, now)]
        if not stuck:
            return self._standstill(signs, now)
        places = "; ".join(f"rank {rank} {_whereabouts(sign)}" for rank, sign in signs.items())
        return Failure(
            tuple(stuck),
            f"{named(stuck)} runs but its training loop has hung for {self.timeout_s:g} s while "
            f"the others wait for it ({places})",
        )

    def _standstill(self, signs: dict[int, Heartbeat], now: float) -> Failure | None:
        """Return who holds up a run in which no rank moves: those that wait for no other."""
        where = {rank: (sign.marks, sign.moves) for rank, sign in signs.items()}
        if where != self._still[0]:
            self._still = (where, now)
        phases = {sign.phase for sign in signs.values()}
        if "starting" in phases or phases == {"training"} or len(signs) < 2:
            return None
        limit_s = self.timeout_s + self.write_s
        if now - self._still[1] < limit_s:
            return None
        guilty = [
            rank for rank, sign in signs.items() if not any(w in sign.place for w in _WAITING)
        ]
        if guilty:
            what = f"{named(guilty)} has not moved for {limit_s:.4g} s while the others wait"
        else:
            guilty = list(signs)
            what = (
                f"{named(guilty)} have waited for each other for {limit_s:.4g} s at different "
                "places: they do not take the same steps, or their network hangs"
            )
        places = "; ".join(f"rank {rank} {_whereabouts(sign)}" for rank, sign in signs.items())
        return Failure(tuple(guilty), f"{what} ({places})")

    def _silent(self, rank: int, sign: Heartbeat, now: float) -> bool:
        beat, since = self._beats.get(rank, (-1, now))
        if beat != sign.beat:
            self._beats[rank] = (sign.beat, now)
            return False
        return now - since >= self.timeout_s

    def _stuck(self, rank: int, sign: Heartbeat, furthest: int, now: float) -> bool:
        if sign.phase != "training" or sign.marks >= furthest:
            self._behind.pop(rank, None)
            return False
        marks, since = self._behind.get(rank, (-1, now))
        if marks != sign.marks:
            self._behind[rank] = (sign.marks, now)
            return False
        return now - since >= self.timeout_s


def named(ranks: list[int]) -> str:
    """Return ``rank 1`` or ``ranks 1, 4``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _whereabouts(sign: Heartbeat) -> str:
    at = f", at {sign.place}" if sign.place else ""
    return f"after step {sign.step}, {sign.phase}{at}"


def this_host() -> str:
    """Return what two processes share exactly when they can see each other's process numbers."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()} {os.readlink(space) if space.is_symlink() else ''}"


def is_running(pid: int) -> bool:
    """Return whether a process of this machine runs; one that nobody has buried yet does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


def stack_of(thread_id: int) -> tuple[tuple[int, int], ...]:
    """Return where a thread of this process stands, in all its calls; the same while it waits."""
    found, frame = [], sys._current_frames().get(thread_id)
    while frame is not None:
        found.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def place_of(thread_id: int) -> str:
    """Return where a thread of this process stands, as ``file:line in function``."""
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return "an unknown place"
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"
