"""Package data: where the shipped recipes and data lie.

A wheel carries ``recipes/`` and ``data/`` inside the package as ``_recipes`` and ``_data``; an
editable install leaves them at the top of the checkout. Only this module knows the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def shipped(folder: Literal["recipes", "data"]) -> Path:
    """Return the folder ``recipes`` or ``data`` as installed.

    Raises:
        FileNotFoundError: Neither the wheel's copy nor the checkout's folder is there.
    """
    candidates = (_PACKAGE / f"_{folder}", _CHECKOUT / folder)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"the shipped folder '{folder}' is at none of {', '.join(map(str, candidates))}; "
        "reinstall gptoss-tune"
    )
