"""Hints for errors of libraries and of the system that surface only at the top.

Where the call is ours the error is translated beside it (the Hub in ``weights.checkpoint``, memory
in ``train.memory.out_of_memory``). What comes out of a library's depths, on whatever line, is told
here by type and words, in a table that stays narrow: an error that is not in it keeps its
traceback, since then the fault may be ours. Nothing heavy is imported to recognise an error: its
class's name and module are enough.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One kind of error, and what to tell.

    Attributes:
        kinds: Names of the exception's class or of one that it derives from.
        words: Pattern that its text must hold.
        told: What it means and what to do; ``{text}`` is its first line.
    """

    kinds: tuple[str, ...]
    words: re.Pattern[str]
    told: str


def _cause(kinds: str, words: str, told: str) -> Cause:
    return Cause(tuple(kinds.split()), re.compile(words, re.IGNORECASE), told)


_DRIVER = (
    "the NVIDIA driver does not fit this build of torch ({text}); update the driver, or install "
    "the torch build for the driver's CUDA version (`nvidia-smi` shows it)"
)
CAUSES = (
    _cause("RuntimeError", "driver on your system is too old", _DRIVER),
    _cause("RuntimeError", "CUDA driver version is insufficient", _DRIVER),
    _cause(
        "RuntimeError",
        "no kernel image is available",
        (
            "this build of torch or of a kernel was not made for this GPU ({text}); install a "
            "torch build whose torch.cuda.get_arch_list() names it"
        ),
    ),
    _cause(
        "RuntimeError",
        "does not have a deterministic implementation|Deterministic behavior was enabled",
        (
            "train.deterministic is on, and torch has no operation with the same bits in every run "
            "for this ({text}); choose another model.attention or model.backend, or set "
            "train.deterministic=false"
        ),
    ),
    _cause(
        "RuntimeError AssertionError",
        "no NVIDIA driver|not compiled with CUDA|no CUDA GPUs",
        (
            "a GPU was asked for and there is none here ({text}); check `nvidia-smi` and "
            "CUDA_VISIBLE_DEVICES, or install a torch build with CUDA"
        ),
    ),
    _cause(
        "RuntimeError",
        "invalid device ordinal",
        (
            "more processes were started than this machine has GPUs ({text}); give `accelerate "
            "launch --num_processes` the number that `nvidia-smi -L` lists"
        ),
    ),
    _cause(
        "DistNetworkError RuntimeError",
        "EADDRINUSE|address already in use",
        (
            "the port of the processes' rendezvous is taken ({text}); another run holds it: give "
            "`accelerate launch --main_process_port` another one, or 0 for a free one"
        ),
    ),
    _cause(
        "ConnectionError",
        ".*",
        (
            "a server cannot be reached ({text}); check the network or HF_ENDPOINT, or train "
            "offline from folders and files with HF_HUB_OFFLINE=1"
        ),
    ),
    _cause(
        "GatedRepoError",
        ".*",
        (
            "the Hub keeps this behind a licence ({text}); accept it on the repository's page and "
            "log in with `hf auth login`"
        ),
    ),
    _cause(
        "RepositoryNotFoundError LocalTokenNotFoundError",
        ".*",
        ("the Hub does not show this ({text}); check the name, or log in with `hf auth login`"),
    ),
    _cause(
        "OSError",
        "File name too long|Too many levels of symbolic links",
        "a path that the system does not take ({text}); give the right one, or shorten its names",
    ),
    _cause(
        "ModuleNotFoundError",
        r"No module named '(?:fcntl|resource|pwd|grp|termios)'",
        (
            "gptoss-tune runs on Linux and macOS, and this Python lacks what they have ({text}); "
            "on Windows, run it in WSL 2"
        ),
    ),
    _cause("HfHubHTTPError", ".*", "the Hub refused ({text}); try again later, or work offline"),
)

_SYSTEM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "too many files are open; raise `ulimit -n`",
    errno.EACCES: "permission denied",
    errno.ESTALE: "the network file system lost this file",
    errno.EIO: "the disk or network file system gave an input/output error",
}


def cause_of(error: BaseException) -> str | None:
    """Return what a foreign error means and what to do, or None where it is not in the table."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ModuleNotFoundError) and (absent := missing_extra(error.name or "")):
        return absent
    text = " ".join(str(error).split())[:300] or type(error).__name__
    for cause in CAUSES:
        if names.intersection(cause.kinds) and cause.words.search(text):
            return cause.told.format(text=text)
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        where = "" if error.filename is None else f"{os.fspath(error.filename)!s}: "
        return f"{where}{_SYSTEM[error.errno]}; free it or choose another place and try again"
    return None


EXTRAS = {
    "train": (
        "accelerate",
        "bitsandbytes",
        "liger_kernel",
        "peft",
        "safetensors",
        "torch",
        "transformers",
        "triton",
        "trl",
    ),
    "graders": ("jsonschema", "math_verify"),
    "gguf": ("gguf",),
    "llama-cpp": ("xllamacpp",),
    "ui": ("starlette", "uvicorn"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "verifiers": ("verifiers",),
    "quack": ("quack",),
}
"""The extras of the package, as in pyproject.toml, and the modules that each of them brings."""
_LINUX_ALONE = ("bitsandbytes", "liger_kernel", "triton", "quack")


_PACKAGE_OF_TRACKER = {"azure_ml": "azureml", "flyte": "flytekit"}
"""Where a tracker's package is not called as Transformers calls the tracker."""


def missing_extra(module: str) -> str | None:
    """Return which extra brings a module that is not there; None: no extra does, or it is there.

    Args:
        module: Its name. A missing part of a library that is there says that the library is of
            another version.
    """
    module = module.partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None or is_installed(module):
        return None
    if module in _LINUX_ALONE and sys.platform != "linux":
        return f"{module} is installed on Linux alone; choose settings that do without it"
    return (
        f"this needs the extra '{extra}': pip install \"gptoss-tune[{extra}]\" (there is no module "
        f"'{module}')"
    )


def missing_tracker(name: str) -> str | None:
    """Return what to install for a tracker of ``tracking.report_to``; None: it is there."""
    package = _PACKAGE_OF_TRACKER.get(name, name)
    if is_installed(package):
        return None
    return f"{name} needs {package}, which is not installed; run `pip install {package}`"


def is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


_OUT_OF_MEMORY = re.compile(
    r"out of memory"  # CUDA, HIP, XPU
    r"|DefaultCPUAllocator: can't allocate memory"
    r"|(CUBLAS|CUDNN|HIPBLAS)_STATUS_ALLOC_FAILED",
)
_FOR_PROGRAMMERS = re.compile(r" If reserved but| See documentation| Exception raised from")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU or of the host is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def allocators_words(error: BaseException) -> str:
    """Return what an allocator said, without its page of advice for programmers."""
    said = " ".join(str(error).split()) or type(error).__name__
    return _FOR_PROGRAMMERS.split(said)[0]
