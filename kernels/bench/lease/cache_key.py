"""Triton's cache as luggage: its key for another machine, and its paths after a move.

Triton files a kernel under a hash of five things: its own files (``triton_key``), the source of the
kernel and of what it calls with the line that it starts on, the target with the version of ptxas,
the options, and a few environment variables. Paths of the source do not enter. The files of Triton
do, and between the wheels of two Python versions one of them differs: the compiled library. So the
key of the other wheel is this one's with that file's hash exchanged, and ``precompile.py`` compiles
under it. Inside, the cache names its files by absolute paths, which ``unpack`` writes anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path

MADE = "made.json"
"""What the cache was made under: key, architecture, number of kernels."""
_LIBRARY = "triton/_C/libtriton.so"
_HASHED = ("triton/runtime/cache.py", "triton/compiler/", "triton/backends/", "triton/language/")


def cache_key() -> str:
    """Return the key of the Triton that is imported here."""
    from triton.runtime.cache import triton_key

    return triton_key()


def key_of_wheel(wheel: Path) -> str:
    """Return the key that the same version of Triton has where this wheel is installed.

    Args:
        wheel: Of the version that is imported here, for any Python.

    Raises:
        ValueError: Another version, or a file that differs besides the compiled library.
    """
    import triton

    here = Path(triton.__file__).parents[1]
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(_HASHED) and n.endswith(".py")]
        other = [name for name in names if _hash(archive.read(name)) != _hash_at(here / name)]
        if not names or other:
            raise ValueError(
                f"{wheel.name} is not triton {triton.__version__}, which is imported here: "
                f"{len(other)} of {len(names)} files differ"
            )
        theirs = _hash(archive.read(_LIBRARY))
    key, ours = cache_key(), _hash_at(here / _LIBRARY)
    if key.count(ours) != 1:
        raise ValueError(f"triton {triton.__version__} makes its key in another way")
    return key.replace(ours, theirs)


def unpack(cache: Path, folder: Path) -> int:
    """Copy a cache and write its paths anew; return the number of kernels.

    Args:
        cache: As ``precompile.py`` left it.
        folder: The new ``TRITON_CACHE_DIR``.
    """
    shutil.copytree(cache, folder, dirs_exist_ok=True)
    groups = list(folder.rglob("__grp__*.json"))
    for group in groups:
        told = json.loads(group.read_text(encoding="utf-8"))
        paths = {name: str(group.parent / name) for name in told["child_paths"]}
        kept = {name: path for name, path in paths.items() if Path(path).is_file()}
        group.write_text(json.dumps({"child_paths": kept}), encoding="utf-8")
    return len(groups)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _hash_at(path: Path) -> str:
    return _hash(path.read_bytes()) if path.is_file() else ""


if __name__ == "__main__":
    print(unpack(Path(sys.argv[1]), Path(sys.argv[2])), "kernels came along")
