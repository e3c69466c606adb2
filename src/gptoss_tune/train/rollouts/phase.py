"""A rollout phase: the prompts of the coming steps are played before the first of them.

Episodes are played in chunks of whole groups (``GrpoSection.groups_in_chunk``), which ranks take in
turn. A chunk holds the same episodes on one to four ranks; more ranks have smaller ones, so that
none is idle. It is what the ledger keeps: a run that was stopped in the middle of a phase plays the
chunks that are missing. All ranks get all episodes.

With dynamic sampling (DAPO), a group whose rewards are all the same gives its place to a further
prompt, up to so many tried for one that is trained; what is left then is trained as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gptoss_tune.distributed import gather_over_ranks, rank, world_size
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.files.digest import digest_of
from gptoss_tune.train.rollouts.groups import Group, PromptOrder
from gptoss_tune.train.rollouts.ledger import Ledger
from gptoss_tune.train.rollouts.played import Played

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import GrpoSection

Asked = tuple[int, int, int]
"""An episode to play: number of its task, its index in the group, its seed."""


class PlaysEpisodes(Protocol):
    """Plays episodes to their end, all that it is given together."""

    def __call__(
        self, asked: Sequence[Asked], temperature: float, should_stop: Callable[[], bool]
    ) -> list[Played]:
        """Return the episodes, in order.

        Raises:
            Stopped: ``should_stop`` was true.
        """
        ...


@dataclass(frozen=True)
class Phase:
    """The episodes of a phase.

    Attributes:
        groups: Those that are trained, in the order of their places.
        played: All that were played.
        cursor: Place of the next prompt.
        seconds: How long it took.
    """

    groups: tuple[Group, ...]
    played: tuple[Group, ...]
    cursor: int
    seconds: float


class Rollouts:
    """Plays the phases of one run; every rank has one, and all are asked the same."""

    def __init__(
        self,
        section: GrpoSection,
        order: PromptOrder,
        play: PlaysEpisodes,
        ledger: Ledger,
        should_stop: Callable[[], bool],
    ) -> None:
        """Play by the settings of ``section``.

        Args:
            section: The recipe's method.
            order: Of the prompts.
            play: Of this rank.
            ledger: Of the run; rank 0 uses it.
            should_stop: Whether this rank was asked to stop.
        """
        self._section, self._order, self._play = section, order, play
        self._ledger, self._should_stop = ledger, should_stop

    def phase(self, prompts: int, cursor: int, key: str) -> Phase:
        """Play a phase; every rank calls it.

        Args:
            prompts: Groups to be trained.
            cursor: Place of its first prompt.
            key: Of all that its episodes depend on beside their places.

        Raises:
            Stopped: On all ranks, where one was asked to stop; what is over is in the ledger.
        """
        began, section = time.monotonic(), self._section
        if rank() == 0:
            self._ledger.open(key)
        size = section.groups_in_chunk(prompts, world_size())
        most = prompts * (section.max_resampling if section.dynamic_sampling else 1)
        played: list[Group] = []
        kept: list[Group] = []
        chunks, place = 0, cursor
        while len(kept) < prompts and len(played) < most:
            wanted = min(prompts - len(kept), most - len(played))
            wave = self._wave(range(place, place + wanted), size, chunks, key)
            chunks += -(-wanted // size)
            place += wanted
            played += wave
            kept += [one for one in wave if not section.dynamic_sampling or one.has_signal(section)]
        taken = {one.place for one in kept}
        kept += [one for one in played if one.place not in taken][: prompts - len(kept)]
        return Phase(
            tuple(sorted(kept, key=lambda group: group.place)),
            tuple(played),
            place,
            time.monotonic() - began,
        )

    def forget(self) -> None:
        """Clear the ledger, whose phase nobody will ask for again."""
        if rank() == 0:
            self._ledger.clear()

    def _wave(self, places: range, size: int, first: int, key: str) -> list[Group]:
        """Return the groups at ``places``; chunks of ``size`` are numbered from ``first``."""
        chunks = {
            first + n: list(places[start : start + size])
            for n, start in enumerate(range(0, len(places), size))
        }
        keys = {n: digest_of({"key": key, "places": held}) for n, held in chunks.items()}
        known: dict[int, list[Played]] = {}
        if rank() == 0:
            found = {n: self._ledger.read(n, keys[n]) for n in chunks}
            known = {n: episodes for n, episodes in found.items() if episodes is not None}
        known = gather_over_ranks(known)[0]
        missing = [n for n in chunks if n not in known]
        for start in range(0, len(missing), world_size()):
            known |= self._round(missing[start : start + world_size()], chunks, keys)
        return [
            Group(place, tuple(known[n][at : at + self._section.group_size]))
            for n, held in chunks.items()
            for at, place in zip(
                range(0, len(known[n]), self._section.group_size), held, strict=True
            )
        ]

    def _round(
        self, numbers: list[int], chunks: dict[int, list[int]], keys: dict[int, str]
    ) -> dict[int, list[Played]]:
        """Play a chunk on each rank, and return all of them; rank 0 writes them down."""
        mine: tuple[int, list[Played]] | None = None
        stopped = self._should_stop()
        if not stopped and rank() < len(numbers):
            number = numbers[rank()]
            try:
                mine = (number, self._chunk(chunks[number]))
            except Stopped:
                stopped = True
        everyone = gather_over_ranks((mine, stopped))
        found = {one[0]: one[1] for one, _ in everyone if one is not None}
        if rank() == 0:
            for number, episodes in found.items():
                self._ledger.write(number, keys[number], episodes)
        if any(flag for _, flag in everyone):
            raise Stopped
        return found

    def _chunk(self, places: list[int]) -> list[Played]:
        asked = [
            (self._order.task(place), index, self._order.seed(place, index))
            for place in places
            for index in range(self._section.group_size)
        ]
        return self._play(asked, self._section.temperature, self._should_stop)
