"""What a run ran on: versions, commit and hardware, as its record keeps them.

The commit of the checkout is asked without running what the checkout names. The current directory
may be someone else's: an unpacked archive with a ``.git`` in it. Its configuration can name a
program for git to run while it compares files (``core.fsmonitor``, a ``filter``, a hook), so
``git describe --dirty``, the usual question, would run that program. The commit is asked with a
command that compares nothing; whether files changed is asked only where the checkout itself
configures no program.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from gptoss_tune import __version__

_QUIET = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
_TIMEOUT_S = 10
_CHANGED, _NOT_ASKED = "-dirty", "-unchecked"
# The scopes that the user owns; "command" is ours, from the line above.
_OWN_SCOPES = ("system", "global", "command")


def git_commit() -> str | None:
    """Return the commit of the current directory's checkout; None where there is none.

    Returns:
        The hash, with ``-dirty`` when tracked files differ, with ``-unchecked`` when the checkout's
        configuration names programs and that was not asked.
    """
    commit = _git("rev-parse", "--verify", "HEAD")
    if not commit:
        return None  # not a checkout, or no git: nothing to record
    if _names_programs():
        return commit + _NOT_ASKED
    changed = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return commit if changed == "" else commit + _CHANGED


def _names_programs() -> bool:
    """Return whether the checkout's own configuration names a filter, or cannot be listed."""
    listed = _git("config", "--list", "--show-scope", "--includes", "--null")
    if listed is None:
        return True
    # scope NUL key LF value NUL, again and again
    scopes_and_keys = listed.split("\0")
    return any(
        scope not in _OWN_SCOPES and entry.lower().startswith("filter.")
        for scope, entry in zip(scopes_and_keys[::2], scopes_and_keys[1::2], strict=False)
    )


def _git(*arguments: str) -> str | None:
    """Return what git prints; None where it fails or is not there."""
    try:
        found = subprocess.run(
            ["git", *_QUIET, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def hardware() -> dict[str, Any]:
    """Return CPU, memory, GPUs and driver of this machine."""
    # Only here and below: the commit, and whoever reads a record, needs none of it.
    import psutil
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    driver = Path("/sys/module/nvidia/version")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "driver": driver.read_text("utf-8").strip() if gpus and driver.is_file() else None,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


_LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "openai-harmony",
    "safetensors",
)


def environment() -> dict[str, Any]:
    """Return versions, commit and hardware of this process."""
    import torch

    return {
        "gptoss_tune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "git_commit": git_commit(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_memory_bytes(*, children: bool = False) -> int:
    """Return the largest resident size that this process reached.

    Args:
        children: Or a child that has ended, where that is more; Windows does not keep it of them.
    """
    try:
        import resource
    except ImportError:  # Windows, whose processes know their own peak
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    whose = [resource.RUSAGE_SELF, *([resource.RUSAGE_CHILDREN] if children else [])]
    peak = max(resource.getrusage(one).ru_maxrss for one in whose)
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes
