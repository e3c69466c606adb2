"""``tokenizer.json`` of a checkpoint: loaded only when it cuts text the way gpt-oss does.

The file is a small program. It can hold regular expressions that never end on the first long word,
or take gigabytes to compile; normalizers that double a text forty times over; padding to a billion
tokens. The library tokenizers runs all of it, and where its own limit stops an expression it panics
past every ``except``. There is one tokenizer for gpt-oss, so whatever is neither that tokenizer's
own pattern nor harmless is refused before the library sees the file.

Running the file in a process with a time limit was the alternative: it finds the expressions that
hang on today's probes, not those that hang on somebody's text.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_tune.display import one_line
from gptoss_tune.errors import DataError
from gptoss_tune.files.strict_json import LARGEST_FILE, parse

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# How o200k cuts text before merging: words with their contraction, numbers of up to three digits,
# punctuation, line breaks, spaces.
SPLIT_PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_WORD}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORD}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

_PARTS = {
    "normalizer": ("Sequence",),
    "pre_tokenizer": ("Sequence", "Split", "ByteLevel"),
    "post_processor": ("Sequence", "ByteLevel", "TemplateProcessing"),
    "decoder": ("Sequence", "ByteLevel"),
}
"""The kinds each part of the file may hold; none of them changes a text's length but by cutting."""


def open_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in the file ``path``, without the padding and truncation it asks for.

    Whether it gives the right ids is for ``Vocabulary.check_tokenizer`` to say.

    Raises:
        DataError: It cannot be read as a tokenizer, or asks for more than gpt-oss's does.
    """
    from tokenizers import Tokenizer

    try:
        raw = _read(path)
        _refuse_foreign_parts(path, parse(raw))
        tokenizer = Tokenizer.from_str(raw.decode())
    except DataError:
        raise
    except Exception as error:
        # tokenizers raises Exception itself for a broken file, nothing narrower.
        if type(error) is not Exception and not isinstance(error, OSError | ValueError | TypeError):
            raise
        raise DataError(
            f"{path}: cannot be read as a tokenizer ({one_line(str(error))}); "
            "copy it again from the released checkpoint"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read(path: Path) -> bytes:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST_FILE:
        raise ValueError(f"expected a file of at most {LARGEST_FILE} bytes")
    return path.read_bytes()


def _refuse_foreign_parts(path: Path, file: Any) -> None:
    """Refuse what could run for ever, grow, or differ from one time to the next."""
    if not isinstance(file, dict):
        raise TypeError(f"it holds {type(file).__name__}, not an object")
    for name, kinds in _PARTS.items():
        for part in _parts(file.get(name)):
            kind, pattern = part.get("type"), part.get("pattern")
            if kind not in kinds:
                _refuse(path, f"its {name} is {kind!r}", " or ".join(kinds))
            if pattern is not None and pattern != {"Regex": SPLIT_PATTERN}:
                _refuse(path, f"its {name} cuts text by {pattern!r}", f"{SPLIT_PATTERN[:40]}...")
    model = file.get("model")
    if isinstance(model, dict) and (model.get("type", "BPE") != "BPE" or model.get("dropout")):
        got = f"its model is {model.get('type')!r} with dropout {model.get('dropout')!r}"
        _refuse(path, got, "'BPE' without dropout")


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Yield one part of the file and those in it, of which a sequence holds a list."""
    waiting = [] if part is None else [part]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            raise TypeError(f"{part!r:.40} is not a part of a tokenizer")
        yield part
        if part.get("type") == "Sequence":
            lists = [value for value in part.values() if isinstance(value, list)]
            waiting += itertools.chain.from_iterable(lists)


def _refuse(path: Path, got: str, expected: str) -> None:
    raise DataError(
        f"{path}: {one_line(got)[:200]}; gpt-oss has {expected}, and another one can stop a run "
        "or change its tokens: use the tokenizer released with gpt-oss"
    )
