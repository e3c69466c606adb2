"""Regular expressions of an adapter's configuration, matched without letting them stop the process.

PEFT reads ``target_modules`` and the keys of ``rank_pattern`` as regular expressions, and other
tools write long ones. Python's engine backtracks: ``(.*)*x`` on a name of forty letters takes
longer than a training, and nothing in the process can interrupt it. So what is more than a plain
name is matched in a process of its own, which is given a few seconds.

Telling the harmful expressions from their text was the alternative; it refuses harmless ones and
misses others.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from typing import Literal

from gptoss_tune.errors import CheckpointError

_PLAIN = re.compile(r"(?:[\w.-]|\\\.)*", re.ASCII)
_LONGEST = 4000
_TIMEOUT_S = 5.0
_MATCHER = (
    "import json, re, sys; how, pattern, names = json.load(sys.stdin); "
    "json.dump([getattr(re, how)(pattern, name) is not None for name in names], sys.stdout)"
)


@functools.lru_cache(maxsize=256)
def matching(
    how: Literal["ends", "fullmatch"], pattern: str, names: tuple[str, ...], where: str
) -> frozenset[str]:
    """Return those of ``names`` that ``pattern`` matches by one of PEFT's two rules.

    Args:
        how: The whole name (``fullmatch``), or the last parts of it (``ends``).
        pattern: As the configuration has it.
        names: Names of modules.
        where: The configuration's file and the option, for messages.

    Raises:
        CheckpointError: It is no regular expression, is very long, or does not come to an end.
    """
    if len(pattern) > _LONGEST:
        raise CheckpointError(f"{where}: a pattern of {len(pattern)} characters; list the modules")
    regex = pattern if how == "fullmatch" else rf"(.*\.)?({pattern})$"
    function = "fullmatch" if how == "fullmatch" else "match"
    if _PLAIN.fullmatch(pattern):
        return frozenset(name for name in names if getattr(re, function)(regex, name))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCHER],
            input=json.dumps([function, regex, names]),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{where}: the pattern {pattern[:60]!a} is not matched within {_TIMEOUT_S:g} s; it "
            "backtracks without end, list the modules by name"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CheckpointError(
            f"{where}: {pattern[:60]!a} is no regular expression ({reason}); list the modules"
        ) from None
    found = json.loads(done.stdout)
    return frozenset(name for name, matched in zip(names, found, strict=True) if matched)
