"""The Hub's cache on this disk: a repository's folder, and the snapshot that is meant by it.

``models--openai--gpt-oss-20b`` holds ``blobs``, ``refs`` and ``snapshots/COMMIT``, which are links
to the blobs. People name the repository's folder, because it has a name.
"""

from __future__ import annotations

from pathlib import Path

from gptoss_tune.errors import CheckpointError

_LONGEST_REF = 1000


def snapshot_of(path: Path) -> Path:
    """Return the snapshot that a repository's folder in the cache means; any other path as it is.

    It is the one that the branch ``main`` was last downloaded as, or the only one.

    Raises:
        CheckpointError: There is none, or which of several is meant cannot be told.
    """
    snapshots = path / "snapshots"
    if not path.name.startswith("models--") or not snapshots.is_dir():
        return path
    found = sorted(each for each in snapshots.iterdir() if each.is_dir())
    main = path / "refs" / "main"
    if main.is_file() and main.stat().st_size < _LONGEST_REF:
        commit = main.read_text(encoding="utf-8", errors="replace").strip()
        meant = [each for each in found if each.name == commit]
        if meant:
            return meant[0]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(
            f"{path}: is a repository in the Hub's cache without a snapshot; download it again"
        )
    raise CheckpointError(
        f"{path}: is a repository in the Hub's cache with {len(found)} snapshots and no branch "
        f"main; name one of them, such as {found[-1]}"
    )


def name_of_snapshot(name: str) -> str:
    """Return a name as it is, and of a repository's folder in the cache its snapshot's.

    Raises:
        CheckpointError: There is none, or which of several is meant cannot be told.
    """
    named = Path(name)
    meant = snapshot_of(named)
    return name if meant == named else str(meant)
