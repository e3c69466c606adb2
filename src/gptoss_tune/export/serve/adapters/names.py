"""Names under which a server gives its adapters, from what the user gave and where they lie.

A name is also a folder's, here and on file systems that do not tell ``A`` from ``a``; so two names
that differ in that alone are one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from gptoss_tune.errors import CheckpointError
from gptoss_tune.run.folder import ADAPTER

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_BASE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]", re.ASCII)
_LONGEST_BASE_NAME = 32
_LONGEST_STEM = _LONGEST_BASE_NAME - len("-base")


def adapter_names(given: Sequence[tuple[str | None, str]]) -> dict[str, str]:
    """Return the sources by the names that they are served under, in the given order.

    A name that nobody gave is that of the run's folder; where several have the same, the folder
    above is put before it.

    Args:
        given: A name or ``None``, and a run, an adapter's folder or its name on the Hub.

    Raises:
        CheckpointError: A given name is none, or two adapters have one name: all of them.
    """
    wrong = [
        f"'{name}={source}': the name is '{name}'; expected 1 to 63 letters, digits, dots, dashes "
        "and underscores, a letter or digit first"
        for name, source in given
        if name is not None and not _NAME.fullmatch(name)
    ]
    if wrong:
        raise CheckpointError("\n  ".join(wrong))
    names = [name or _of_folder(source, 1) for name, source in given]
    counted = Counter(name.lower() for name in names)
    for i, (name, source) in enumerate(given):
        if name is None and counted[names[i].lower()] > 1:
            names[i] = _of_folder(source, 2)
    counted = Counter(name.lower() for name in names)
    twice = sorted({name.lower() for name in names if counted[name.lower()] > 1})
    if twice:
        told = [
            f"'{each}': "
            + " and ".join(s for n, (_, s) in zip(names, given, strict=True) if n.lower() == each)
            for each in twice
        ]
        raise CheckpointError(
            "several adapters would be served under one name:\n  "
            + "\n  ".join(told)
            + "\nname each with NAME=RUN"
        )
    return {name: source for name, (_, source) in zip(names, given, strict=True)}


def served_base_name(base: str, taken: Sequence[str]) -> str:
    """Return the name of the base itself beside adapters of the names ``taken``.

    Its folder's, cut where ``Served`` wants it shorter; where an adapter has that name, with
    ``-base`` behind it, then ``-base-2`` and so on.
    """
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(base).name).strip("-")[:_LONGEST_STEM].strip("-")
    stem = stem if _BASE_NAME.fullmatch(stem) else "base"
    lower, name = {each.lower() for each in taken}, stem
    for n in count(1):
        if name.lower() not in lower:
            break
        ending = "-base" if n == 1 else f"-base-{n}"
        name = stem[: _LONGEST_BASE_NAME - len(ending)].rstrip("-") + ending
    return name


def _of_folder(source: str, parts: int) -> str:
    """Return a valid name of the last ``parts`` of a path; of a run where it is its adapter."""
    place = Path(source).expanduser()
    place = place.resolve() if place.exists() else place
    named = [part for part in place.parts if part not in ("/", ".", "..")]
    while len(named) > 1 and named[-1] == ADAPTER:
        named.pop()
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(named[-parts:])).strip("-._")
    return text[-63:].strip("-._") or "adapter"
