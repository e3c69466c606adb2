r"""Safe display: control characters made visible, credentials hidden, no character that is refused.

File names, tensor names and rows of a dataset come from others. An escape sequence in one of them
can clear a terminal, retitle it or forge a line of output; a mark that turns the writing direction
can show another name than is meant. ``visible`` spells such characters out.

A message may also quote what a library said, or an address, and end up in a job's log:
``without_credentials`` takes out what is a secret of this process or looks like one.

A stream may be unable to show a character: a pipe on Windows writes cp1252, a machine without a
locale ASCII. ``spell_out`` has such a stream spell the character as JSON does, ``\u5317``, where
Python would end in a traceback.

All are applied where text leaves (the command's error message, the printed tables), because the
alternative, cleaning at every place that builds a message, is forgotten at one of them.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import textwrap
from typing import TextIO

# Controls but tab and line feed, the marks that turn the writing direction, and invisible spaces;
# the joiners of emoji and of Indic and Persian script stay.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)

CREDENTIAL = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|wandb_v1_[A-Za-z0-9_]{16,}"
    r"|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}"
    r"|glpat-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|nvapi-[A-Za-z0-9_-]{16,})"
)
"""Tokens that tell what they are by how they begin."""

_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@'\"]+@")
_IN_QUERY = re.compile(
    r"(?<=[?&])([\w.-]*(?:token|key|secret|sig|signature|password)[\w.-]*)=[^\s&#'\"]+", re.I
)
_SECRET_NAME = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(?:^|_)KEY)$", re.I)
_SHORTEST_SECRET = 8  # shorter values of such variables are words like "none"
HIDDEN = "[hidden]"


def visible(text: str) -> str:
    """Return text with everything invisible spelled out: an escape as backslash, x1b."""
    return _INVISIBLE.sub(lambda match: ascii(match.group())[1:-1], text)


def one_line(text: str) -> str:
    """Return a stranger's name as ``visible`` does, line feeds and tabs spelled out too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def without_credentials(text: str) -> str:
    """Return ``text`` without tokens, passwords in addresses, and this process's own secrets.

    The process's secrets are the values of environment variables whose names end in TOKEN, KEY,
    SECRET, PASSWORD or CREDENTIALS.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    text = CREDENTIAL.sub(HIDDEN, text)
    text = _IN_ADDRESS.sub(f"{HIDDEN}@", text)
    return _IN_QUERY.sub(rf"\1={HIDDEN}", text)


def shown_safely(text: str) -> str:
    """Return ``text`` as it may be printed: ``visible`` and ``without_credentials``."""
    return visible(without_credentials(text))


def wrapped(text: str, width: int) -> str:
    """Return ``text`` broken between words for a terminal of ``width`` columns.

    A word is never broken, since paths and commands are copied from there; what goes on is indented
    by two more columns than its line.
    """
    return "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip(" ")))
    return textwrap.fill(
        line.strip(" "),
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


_SPELLED = "gptoss_tune.spelled"


def spell_out(*streams: TextIO) -> None:
    """Have streams spell out what they cannot show; what their user chose for that stays."""
    codecs.register_error(_SPELLED, _spelled)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=_SPELLED)


def can_show(text: str, encoding: str | None) -> bool:
    """Return whether a stream of this encoding can write ``text`` as it is."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # As JSON has it, so that JSON which a command prints stays what it was.
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
