"""Which GGUF model a name means: a file, the parts of a split one, or a folder that holds one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from gptoss_tune.errors import CheckpointError

GGUF: Final = ".gguf"
_MAGIC: Final = b"GGUF"
_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def is_gguf(name: str | Path) -> bool:
    """Return whether a name is a GGUF file, or a folder with one and no ``config.json``.

    A name that ends in ``.gguf`` is one even where nothing lies there, for the message to say so.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return not (path / "config.json").exists() and any(path.glob(f"*{GGUF}"))
    return path.suffix == GGUF


def gguf_files(name: str | Path) -> list[Path]:
    """Return the files of the one model that ``name`` means, the parts of a split one in order.

    llama.cpp is given the first and finds the others beside it.

    Raises:
        CheckpointError: There is none, several, a part is missing, or a file is no GGUF.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        models = {file.name: file for file in sorted(path.glob(f"*{GGUF}")) if _is_first(file)}
        if len(models) != 1:
            found = ", ".join(models) if models else "none whose first part is there"
            raise CheckpointError(f"{path}: expected one GGUF model, got {found}; name the file")
        (path,) = models.values()
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected a GGUF model, which gptoss-tune merge RUN "
            "--format gguf --out DIR writes"
        )
    files = _parts(path)
    for file in files:
        _check_magic(file)
    return files


def _is_first(path: Path) -> bool:
    part = _PART.fullmatch(path.name)
    return part is None or int(part["number"]) == 1


def _parts(path: Path) -> list[Path]:
    """Return all parts of the model that ``path`` is a part of; itself alone where it is whole."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    count = int(part["count"])
    names = [f"{part['stem']}-{n:05}-of-{count:05}{GGUF}" for n in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path.parent}: {len(missing)} of {count} parts of the model are missing: "
            f"{', '.join(missing[:5])}; copy them beside the others"
        )
    return [path.parent / name for name in names]


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if magic != _MAGIC:
        raise CheckpointError(
            f"{path}: is no GGUF file: it begins with {magic!r}, expected {_MAGIC!r}; a file of "
            "Git LFS holds only a pointer until it is fetched"
        )
