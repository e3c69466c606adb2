"""The files of a run before it starts: its base, its data with their first rows, its folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gptoss_tune.errors import CheckpointError, DataError
from gptoss_tune.harmony.dataset.kinds import SampleKind
from gptoss_tune.harmony.reading import ReadSettings
from gptoss_tune.harmony.sources.files import format_suffix, read_file, refuse_unreadable
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.sources.written import written_rows
from gptoss_tune.preflight.obstacles import Obstacles
from gptoss_tune.recipe.data_schema import TASK_KEYS, DataSection, DataSource
from gptoss_tune.recipe.evaluation_schema import EvaluationSection
from gptoss_tune.recipe.recipe import chosen_count
from gptoss_tune.recipe.schema import LoraSection, ModelSection, TrainSection
from gptoss_tune.run.start import check_disk, existing_part, refuse_folder
from gptoss_tune.weights.adapter_config import (
    ADAPTER_WEIGHTS,
    choice_to_start_from,
    find_adapter,
)
from gptoss_tune.weights.config import read_config
from gptoss_tune.weights.layouts.foreign import without_weights
from gptoss_tune.weights.names import INDEX_NAME, SINGLE_NAME
from gptoss_tune.weights.sources import download, is_on_hub, resolve

if TYPE_CHECKING:
    from gptoss_tune.harmony.sources.columns import ColumnTemplates
    from gptoss_tune.plan.architecture import Architecture

FIRST_ROWS = 4
"""Rows of each source that are read as the method reads them."""
_READ_WHOLE = 1 << 24
"""Bytes up to which a file is read that has to be read whole for its first row."""
_Reader: TypeAlias = Callable[[dict[str, Any], dict[str, Any], str, ReadSettings], object]
"""Reads a row and what templates write of it, with its place."""


def look_at_base(model: ModelSection, obstacles: Obstacles) -> Path | None:
    """Look for the base; return its folder, ``None`` where it is a name on the Hub or wrong."""
    name = model.name_or_path
    with obstacles.looking("model.name_or_path"):
        if is_on_hub(name):
            return None
        folder = resolve(name)
        read_config(folder)
        if not any(os.path.lexists(folder / file) for file in (INDEX_NAME, SINGLE_NAME)):
            raise CheckpointError(without_weights(folder, SINGLE_NAME, INDEX_NAME))
        return folder
    return None


def config_on_hub(model: ModelSection) -> Path:
    """Return a folder with the ``config.json`` of a base on the Hub, which is fetched alone.

    Raises:
        HubError: No such repository or revision, no access, or no answer and nothing in the cache.
        CheckpointError: It is no gpt-oss.
    """
    folder = download(model.name_or_path, model.revision, ("config.json",))
    read_config(folder)
    return folder


def look_at_experts(
    lora: LoraSection, architecture: Architecture | None, obstacles: Obstacles
) -> Architecture | None:
    """Return the sizes of the base, unless a layer has fewer experts than are to be chosen."""
    if architecture is None:
        return None
    with obstacles.looking("lora.experts"):
        chosen_count(lora, architecture.experts)
        return architecture
    return None


def look_at_start(
    lora: LoraSection, architecture: Architecture | None, obstacles: Obstacles
) -> None:
    """Look for the adapter to start from, and whether it is on as many experts as the recipe's."""
    if lora.init_from is None:
        return
    with obstacles.looking("lora.init_from"):
        folder = find_adapter(Path(lora.init_from))
        if folder is None or not (folder / ADAPTER_WEIGHTS).is_file():
            raise CheckpointError(
                f"{lora.init_from} holds no adapter with {ADAPTER_WEIGHTS}; name a finished run or "
                "a PEFT adapter"
            )
        if architecture is not None:
            choice_to_start_from(folder, lora, architecture.layers, architecture.experts)


def look_at_data(
    data: DataSection,
    kind: SampleKind,
    obstacles: Obstacles,
    *,
    graded: bool = False,
    own: bool = False,
) -> None:
    """Find the files of every source, and read the first rows of each.

    Args:
        data: Names them.
        kind: What the method reads rows as.
        obstacles: What is found.
        graded: Whether a prompt must say how its answer is graded.
        own: Whether an environment of the user's own asks.
    """
    read = _reader(kind, graded=graded, own=own)
    for key, sources in (("data.train", data.train), ("data.eval", data.eval or [])):
        for source in sources:
            with obstacles.looking(key):
                _look_at_source(source, data, read)


def look_at_questions(evaluation: EvaluationSection, obstacles: Obstacles) -> None:
    """Find the files that the model is asked from."""
    drift, safety = evaluation.drift, evaluation.safety
    for key, paths in (
        ("evaluation.prompts", evaluation.prompts),
        ("evaluation.drift.references", drift.references),
        ("evaluation.drift.probes", drift.probes),
        ("evaluation.safety.requests", safety.requests),
        ("evaluation.safety.policy", None if safety.policy is None else [safety.policy]),
    ):
        for path in paths or []:
            with obstacles.looking(key):
                for file, name in find_files(path) or ():
                    refuse_unreadable(file, name)


def look_at_folder(
    train: TrainSection,
    lora: LoraSection,
    architecture: Architecture | None,
    obstacles: Obstacles,
) -> None:
    """Look at the run's folder: what it holds, whether it can be written, whether there is room.

    Args:
        train: Names it.
        lora: What its checkpoints hold.
        architecture: Of the base; ``None`` where it is not known here.
        obstacles: What is found.
    """
    with obstacles.looking("train.output_dir"):
        refuse_folder(train)
        folder = Path(train.output_dir)
        if architecture is not None and existing_part(folder).is_dir():
            from gptoss_tune.plan.disk import run_files

            check_disk(folder, run_files(architecture, lora, train))


def _look_at_source(source: DataSource, data: DataSection, read: _Reader) -> None:
    templates = None
    if source.columns is not None:
        from gptoss_tune.harmony.sources.columns import ColumnTemplates

        templates = ColumnTemplates(dict(source.columns.items()), structured=TASK_KEYS)
    files = find_files(source.path, name=source.name, split=source.split)
    if files is None:  # on the Hub, which is asked when it is read
        return
    for name in ("revision", "streaming"):
        if getattr(source, name):
            raise DataError(
                f"{source.path}: lies here, and what lies here has no {name}; remove {name}, or "
                "rename it here to read the Hub's dataset of that name"
            )
    for file, name in files:
        refuse_unreadable(file, name)
    if data.on_error == "stop":
        _read_first_rows(files[0], templates, data, read)


def _read_first_rows(
    file: tuple[Path, str], templates: ColumnTemplates | None, data: DataSection, read: _Reader
) -> None:
    """Read the first rows of a file as the method does.

    Raises:
        DataError: One of them cannot be trained on, as the run would find as well.
    """
    path, name = file
    whole = format_suffix(path) != ".jsonl" and format_suffix(path) != ".csv"
    if whole and path.stat().st_size > _READ_WHOLE:
        return
    reading = ReadSettings(
        thinking_tags=data.thinking_tags,
        roles=tuple(sorted(data.roles.items())),
        tool_names=tuple(sorted(data.tool_names.items())),
        ignored_keys=tuple(sorted(data.ignored_keys)),
    )
    rows = itertools.islice(read_file(path, name), FIRST_ROWS)
    for at, row, written in written_rows(rows, templates):
        for found in (row, written):
            if isinstance(found, DataError):
                raise found
        assert isinstance(row, dict) and isinstance(written, dict)
        read(row, written, at, reading)


def _reader(kind: SampleKind, *, graded: bool, own: bool) -> _Reader:
    """Return what reads a row as the method does; each format's reader is imported when used."""
    if kind.rows == "pair":
        from gptoss_tune.harmony.formats.preference import read_preference

        return lambda _, row, at, reading: read_preference(row, at, reading=reading)
    if kind.rows == "label":
        from gptoss_tune.harmony.formats.labelled import read_labelled

        return lambda _, row, at, reading: read_labelled(row, at, reading=reading)
    if kind.rows == "prompt":
        from gptoss_tune.grading.rows import require_grader
        from gptoss_tune.harmony.formats.registry import read_to_play

        def read(
            row: dict[str, Any], written: dict[str, Any], at: str, reading: ReadSettings
        ) -> None:
            read_to_play(written, at, reading, own=own)
            if graded:
                require_grader(row, at)

        return read
    from gptoss_tune.harmony.formats.registry import read_row

    return lambda _, row, at, reading: read_row(row, at, reading)
