"""What a file is by its first bytes, where its name says something else.

A download that failed is a page of HTML named .parquet, a clone without Git LFS holds pointers, a
spreadsheet writes UTF-16: a reader that trusts the name refuses such a file at its first byte with
the words of its format. Here it is refused with what the file is.
"""

from __future__ import annotations

from typing import Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import shown

HEAD: Final = 4096
"""Bytes that are looked at."""
_KINDS: Final = (
    (b"PAR1", ".parquet", "a Parquet file", "name it .parquet"),
    (b"ARROW1", ".arrow", "an Arrow file", "name it .arrow"),
    (b"\x1f\x8b", ".gz", "compressed by gzip", "add .gz to its name"),
    (b"\x28\xb5\x2f\xfd", ".zst", "compressed by zstd", "add .zst to its name"),
    (b"PK\x03\x04", "", "a zip archive", "unpack it and name the files in it"),
    (b"BZh", "", "compressed by bzip2", "decompress it first"),
    (b"\xfd7zXZ", "", "compressed by xz", "decompress it first"),
    (b"%PDF", "", "a PDF", "write its text as rows of JSON Lines"),
    (b"SQLite format 3", "", "an SQLite database", "write its rows as JSON Lines"),
    (
        b"version https://git-lfs.github.com/spec/",
        "",
        "a pointer of Git LFS and not the data",
        "run 'git lfs pull' in its clone, or download the file",
    ),
    (b"<!doctype html", "", "a page of HTML, perhaps of a download that failed", "download again"),
    (b"<html", "", "a page of HTML, perhaps of a download that failed", "download again"),
)
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_TAR_MARK: Final = slice(257, 262)
ARCHIVES: Final = (".tar", ".tgz", ".zip", ".7z", ".rar", ".tbz2", ".txz")


def refuse_other_content(head: bytes, name: str, suffix: str) -> None:
    """Refuse a file that is surely not what its suffix says.

    Args:
        head: Its first bytes, at most ``HEAD``; all of it where it is shorter.
        name: What to call it in messages.
        suffix: Of the format, or of the compression where ``head`` is compressed.

    Raises:
        DataError: What it is, and what to do.
    """
    lowered = head[:64].lower()
    for mark, own, what, todo in _KINDS:
        if suffix != own and (head.startswith(mark) or lowered.startswith(mark)):
            raise DataError(f"{name}: holds {what}, not {suffix}; {todo}")
    if head[_TAR_MARK] == b"ustar":
        raise DataError(f"{name}: holds a tar archive; unpack it and name the files in it")
    if suffix in (".jsonl", ".ndjson", ".json", ".csv", ".txt"):
        _refuse_wide(head, name)
    if suffix == ".csv" and head.lstrip().startswith((b'{"', b"[{", b'["')):
        raise DataError(f"{name}: holds JSON, not .csv; name it .jsonl")
    if suffix in (".parquet", ".arrow") and head.lstrip().startswith((b'{"', b"[{")):
        raise DataError(f"{name}: holds JSON, not {suffix}; name it .jsonl")
    if suffix in (".jsonl", ".ndjson", ".json"):
        _refuse_csv(head, name, suffix)


def _refuse_wide(head: bytes, name: str) -> None:
    if head.startswith(_WIDE):
        raise DataError(f"{name}: is UTF-16 or UTF-32 text; save it as UTF-8")
    if head and not head.strip(b"\0"):
        raise DataError(
            f"{name}: begins with {len(head):,} zero bytes and holds no text; write it again"
        )
    if b"\0" in head[:4] and head[:64].count(b"\0") >= len(head[:64]) // 2:
        raise DataError(f"{name}: is UTF-16 or UTF-32 text; save it as UTF-8")


def _refuse_csv(head: bytes, name: str, suffix: str) -> None:
    """A line of names and a second one, neither of them JSON."""
    first, _, rest = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    second = rest.lstrip()
    if not second or (first[:1] in b'{["' and not first.startswith(b'"')):
        return
    names = first.strip().split(b"," if b"," in first else b"\t")
    is_header = len(names) > 1 and all(
        word.strip().strip(b'"').replace(b"_", b"").replace(b" ", b"").isalnum() for word in names
    )
    if is_header and second[:1] not in b"{[":
        shown_header = shown(first.strip().decode("utf-8", "replace"))
        raise DataError(
            f"{name}: holds CSV (its first line is {shown_header}), not {suffix}; name it .csv"
        )
