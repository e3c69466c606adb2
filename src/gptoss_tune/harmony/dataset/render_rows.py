"""Chunks of rows -> columns of samples, in this process or in several.

A chunk is 128 rows at most, as they stand in the file (samples of more have left the processor's
cache before they are put together); a worker parses, renders and tokenises it and sends arrays
back, which pickle as memory. Chunks come back in the order they went out and only a few are under
way at a time, so the result does not depend on the number of processes and memory does not depend
on the size of the file.

Processes are spawned, not forked: training has threads and perhaps a GPU open, and a forked copy of
either hangs.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.harmony.conversation import (
    CHANNEL_NAMES,
    CHANNELS,
    Conversation,
    count_special_text,
)
from gptoss_tune.harmony.dataset.counts import MOST_LISTED, RowCounts
from gptoss_tune.harmony.fields import EFFORTS
from gptoss_tune.harmony.formats.detect import format_of
from gptoss_tune.harmony.formats.registry import read_as
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings
from gptoss_tune.harmony.render import Example, Renderer, RenderSettings, truncate
from gptoss_tune.harmony.sources.padding import clean_row
from gptoss_tune.harmony.sources.rows import Located
from gptoss_tune.harmony.vocabulary import LONGEST_TOKEN_BYTES, Vocabulary, vocabulary_from

CHUNK_BYTES: Final = 1 << 18
CHUNK_ROWS: Final = 128
WORTH_A_PROCESS: Final = 32 << 20
"""Bytes of source, about ten seconds of work, for which another process pays for its start."""


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """What decides how a row becomes samples; part of the key of the cache."""

    render: RenderSettings
    max_length: int
    too_long: Literal["drop", "truncate", "error"]
    nothing_to_train: Literal["skip", "error"]
    reading: ReadSettings = AS_IT_STANDS


@dataclass(frozen=True, slots=True)
class Columns:
    """The samples of a chunk; sample i is ``[offsets[i]:offsets[i + 1]]`` of the token columns."""

    input_ids: NDArray[np.int32]
    loss_weights: NDArray[np.float32]
    channels: NDArray[np.int8]
    lengths: NDArray[np.int32]
    efforts: NDArray[np.int8]
    row_keys: NDArray[np.uint64]
    prompt_keys: NDArray[np.uint64]
    repeated_tokens: NDArray[np.int32]
    special_text: NDArray[np.int32]
    without_thoughts: NDArray[np.int8]
    sources: list[str]
    report: RowCounts


class RowRenderer:
    """Turns rows into samples and counts what happens to them."""

    def __init__(self, vocabulary: Vocabulary, settings: SampleSettings) -> None:
        """Keep the settings and prepare a renderer."""
        self.settings = settings
        self.renderer = Renderer(vocabulary, settings.render)

    def columns(self, chunk: list[Located]) -> Columns:
        """Return the samples of a chunk; rows that cannot be used are in its report."""
        report = RowCounts()
        examples: list[Example] = []
        about: list[tuple[int, ...]] = []
        for at, raw in chunk:
            report.counts["rows"] += 1
            try:
                row, padding = clean_row(raw, at)
                if padding:
                    report.counts["padding"] += padding
                name = format_of(row, at)
                report.formats[name] += 1
                conversation = read_as(name, row, at, self.settings.reading)
                special = self._count_special_text(conversation, report)
                kept = self._samples(conversation, report)
            except DataError as error:
                report.reject(str(error))
                continue
            report.note(conversation)
            effort = conversation.effort or self.settings.render.reasoning_effort
            report.efforts[effort] += len(kept)
            named = conversation.effort is not None
            thoughtless = int(effort != "low" and not named and not conversation.thinks)
            report.counts["without_thoughts"] += thoughtless
            row = (EFFORTS.index(effort), *conversation.keys())
            for example, repeated in kept:
                examples.append(example)
                about.append((*row, repeated, special, thoughtless))
                special = thoughtless = 0  # counted once a row, with its first sample
        return _columns(examples, about, report)

    def _samples(self, conversation: Conversation, report: RowCounts) -> list[tuple[Example, int]]:
        """Return the samples of a row, each with how many of its tokens an earlier one had too."""
        at, settings = conversation.source, self.settings
        if settings.too_long == "drop" and _surely_longer(conversation, settings.max_length):
            self._drop(at, report)
            return []
        examples = self.renderer.render(conversation)
        if not examples:
            if settings.nothing_to_train == "error":
                raise DataError(
                    f"{at}: every token has loss weight 0; give a message or its channel a weight, "
                    "or set data.nothing_to_train to skip"
                )
            report.counts["nothing_to_train"] += 1
            return []
        if settings.render.turns == "all":
            report.counts["shared_turns"] += conversation.turn_count() - len(examples)
        kept: list[tuple[Example, int]] = []
        for example, repeated in zip(examples, _repeated_tokens(examples), strict=True):
            fitted = self._fitted(example, report)
            kept += [(one, min(repeated, len(one.input_ids))) for one in fitted]
        report.counts["repeated_tokens"] += sum(repeated for _, repeated in kept)
        return kept

    def _fitted(self, example: Example, report: RowCounts) -> list[Example]:
        limit = self.settings.max_length
        if len(example.input_ids) <= limit:
            return [example]
        if self.settings.too_long == "error":
            raise DataError(
                f"{example.source}: a sample has {len(example.input_ids):,} tokens, over "
                f"data.max_length {limit:,}; raise it, shorten the row, or set "
                "data.too_long to drop"
            )
        if self.settings.too_long == "drop":
            return self._drop(example.source, report, len(example.input_ids))
        shorter = truncate(example, limit)
        if shorter is None:
            return self._drop(example.source, report, len(example.input_ids))
        report.counts["truncated"] += 1
        return [shorter]

    def _drop(self, at: str, report: RowCounts, tokens: int = 0) -> list[Example]:
        """Count a sample that is too long, of ``tokens`` tokens; 0: it was not even tokenised."""
        report.counts["too_long"] += 1
        if tokens:
            report.shortest_too_long = min(report.shortest_too_long or tokens, tokens)
        if len(report.too_long) < MOST_LISTED:
            report.too_long.append(at)
        return []

    def _count_special_text(self, conversation: Conversation, report: RowCounts) -> int:
        found = sum(map(count_special_text, conversation.texts()))
        if found:
            report.counts["special_text"] += found
            if len(report.special_text) < MOST_LISTED:
                report.special_text.append(conversation.source)
        return found


def render_rows(
    rows: Iterable[Located], vocabulary: Vocabulary, settings: SampleSettings, processes: int
) -> Iterator[Columns]:
    """Yield the columns of every chunk, in the order of the rows.

    Args:
        rows: From a source.
        vocabulary: To render with.
        settings: How rows become samples.
        processes: 1 renders here.

    Raises:
        MachineError: A worker process died.
    """
    if processes == 1:
        renderer = RowRenderer(vocabulary, settings)
        yield from map(renderer.columns, chunks(rows))
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    executor = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_leave_with_parent
    )
    under_way: deque = deque()
    try:
        for chunk in chunks(rows):
            under_way.append(
                executor.submit(_render_in_worker, str(vocabulary.ranks_file), settings, chunk)
            )
            if len(under_way) > 2 * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise MachineError(
            "a rendering process died, most likely for want of memory; set data.dataset_num_proc "
            "to fewer processes"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def default_processes(size: int) -> int:
    """Return how many processes a source of ``size`` bytes is worth on this machine."""
    # macOS and Windows do not say which cores a process may use.
    listed = getattr(os, "sched_getaffinity", None)
    cores = len(listed(0)) if listed else os.cpu_count() or 1
    return max(1, min(cores, size // WORTH_A_PROCESS))


def chunks(rows: Iterable[Located]) -> Iterator[list[Located]]:
    """Yield the rows in lists of at most 128 rows and about 256 KiB."""
    chunk: list[Located] = []
    size = 0
    for at, raw in rows:
        chunk.append((at, raw))
        size += len(raw) if isinstance(raw, bytes) else CHUNK_BYTES // CHUNK_ROWS
        if size >= CHUNK_BYTES or len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _leave_with_parent() -> None:
    """End this process when its parent does: a killed parent cannot tell it to.

    It waits for work at a pipe whose other end it holds itself, so it would wait for ever.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _render_in_worker(ranks_file: str, settings: SampleSettings, chunk: list[Located]) -> Columns:
    return _worker_renderer(ranks_file, settings).columns(chunk)


@lru_cache(maxsize=1)
def _worker_renderer(ranks_file: str, settings: SampleSettings) -> RowRenderer:
    return RowRenderer(vocabulary_from(Path(ranks_file)), settings)


def _surely_longer(conversation: Conversation, max_length: int) -> bool:
    """Whether the last turn alone is too long, known from its bytes: nothing need be tokenised.

    A token is at most 128 bytes and a character at least one.
    """
    characters = sum(len(message.text) for message in conversation.messages)
    return characters > LONGEST_TOKEN_BYTES * max_length and conversation.turn_count() == 1


def _repeated_tokens(examples: list[Example]) -> list[int]:
    """Return how many tokens of each sample of a row, from its start, the one before it has too."""
    repeated = [0]
    for before, after in pairwise(examples):
        shortest = min(len(before.input_ids), len(after.input_ids))
        differs = before.input_ids[:shortest] != after.input_ids[:shortest]
        repeated.append(int(differs.argmax()) if differs.any() else shortest)
    return repeated


def _columns(examples: list[Example], about: list[tuple[int, ...]], report: RowCounts) -> Columns:
    def joined(name: str, dtype: type) -> NDArray:
        parts = [getattr(example, name) for example in examples]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    input_ids = joined("input_ids", np.int32)
    loss_weights = joined("loss_weights", np.float32)
    channels = joined("channels", np.int8)
    each = zip(*about, strict=True) if about else [()] * 6
    efforts, rows, prompts, repeated, special, thoughtless = each
    trained = np.bincount(channels[loss_weights > 0], minlength=len(CHANNEL_NAMES))
    report.counts["samples"] += len(examples)
    report.counts["tokens"] += len(input_ids)
    report.counts["trained_tokens"] += int((loss_weights > 0).sum())
    for number, channel in enumerate(CHANNELS, start=1):
        report.channels[channel] += int(trained[number])
    return Columns(
        input_ids=input_ids,
        loss_weights=loss_weights,
        channels=channels,
        lengths=np.array([len(example.input_ids) for example in examples], dtype=np.int32),
        efforts=np.array(efforts, dtype=np.int8),
        row_keys=np.array(rows, dtype=np.uint64),
        prompt_keys=np.array(prompts, dtype=np.uint64),
        repeated_tokens=np.array(repeated, dtype=np.int32),
        special_text=np.array(special, dtype=np.int32),
        without_thoughts=np.array(thoughtless, dtype=np.int8),
        sources=[example.source for example in examples],
        report=report,
    )
