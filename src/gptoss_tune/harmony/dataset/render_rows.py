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
from functools import lru_cache
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Final

from gptoss_tune.errors import MachineError
from gptoss_tune.harmony.dataset.pair_renderer import PairRenderer
from gptoss_tune.harmony.dataset.row_renderer import Columns, RowRenderer, SampleSettings
from gptoss_tune.harmony.sources.rows import Located, Raw
from gptoss_tune.harmony.vocabulary import Vocabulary, vocabulary_from

CHUNK_BYTES: Final = 1 << 18
CHUNK_ROWS: Final = 128
WORTH_A_PROCESS: Final = 32 << 20
"""Bytes of source, about ten seconds of work, for which another process pays for its start."""


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
        renderer = row_renderer(vocabulary, settings)
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


def row_renderer(vocabulary: Vocabulary, settings: SampleSettings) -> RowRenderer:
    """Return what turns rows of the kind that ``settings`` name into samples."""
    kind = RowRenderer if settings.kind.rows == "conversation" else PairRenderer
    return kind(vocabulary, settings)


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
        size += _size(raw)
        if size >= CHUNK_BYTES or len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(raw: Raw) -> int:
    """Return about how many bytes a row has; of parsed ones a document alone may be long."""
    if isinstance(raw, bytes):
        return len(raw)
    text = raw.get("text") if isinstance(raw, dict) else None
    return max(CHUNK_BYTES // CHUNK_ROWS, len(text) if isinstance(text, str) else 0)


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
    return row_renderer(vocabulary_from(Path(ranks_file)), settings)
