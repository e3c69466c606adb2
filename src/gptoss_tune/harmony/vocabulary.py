"""The o200k_harmony vocabulary, offline: one object that encodes text and renders structure.

openai-harmony is the authority on structure, but it downloads its ranks on first use and its
encoder takes seconds for a long run of letters. So the ranks come from the file shipped in
``data/vocab`` (or are rebuilt from the checkpoint's own ``tokenizer.json``), the library is pointed
at them while it loads, and the text between the special tokens is encoded by tiktoken with the same
ranks: equal ids (compared at load and in the tests), about three times the speed, and no quadratic
cases. The alternative, rendering to text and tokenising that, is how ``<|end|>`` inside a user's
message becomes a real end of message.

A checkpoint whose tokenizer gives other ids would be trained on noise; ``check_tokenizer_file`` and
``check_tokenizer`` stop the run instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.harmony.tokenizer_file import SPLIT_PATTERN, open_tokenizer
from gptoss_tune.shipped import shipped

if TYPE_CHECKING:
    import tiktoken
    from openai_harmony import HarmonyEncoding

RANKS_FILE = "o200k_base.tiktoken"
RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
ORDINARY_TOKENS = 199_998
"""Ids below this are byte-pair ranks; the special tokens follow."""
VOCABULARY_SIZE = 201_088
"""Rows of the embedding; the last ones have no token."""

STARTOFTEXT, ENDOFTEXT = 199_998, 199_999
RETURN, CONSTRAIN, CHANNEL, START, END, MESSAGE, CALL = (
    200_002,
    200_003,
    200_005,
    200_006,
    200_007,
    200_008,
    200_012,
)
NAMED_SPECIAL_TOKENS = {
    "<|startoftext|>": STARTOFTEXT,
    "<|endoftext|>": ENDOFTEXT,
    "<|return|>": RETURN,
    "<|constrain|>": CONSTRAIN,
    "<|channel|>": CHANNEL,
    "<|start|>": START,
    "<|end|>": END,
    "<|message|>": MESSAGE,
    "<|call|>": CALL,
}

KNOWN_TOKENIZERS = {
    "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3": "gpt-oss as released",
    "5d166cf76a735006c818d9bbd4e4052ec03011c243969a1b6d6697685bc77b70": "gptoss-tune tiny",
}
"""sha256 of the ``tokenizer.json`` that are known to be right: to read one takes seconds."""

LONGEST_TOKEN_BYTES = 128
"""No rank of o200k_base is longer, so a text of n bytes has at least n / 128 tokens."""

# Texts in which tokenizers were seen to differ: contractions, digits, spaces, line ends, scripts,
# combining marks, emoji, control characters, and special tokens spelled out as text.
PROBES = (
    "Hello, world! It's 12345.678 o'clock; we'll see.\n\n\tTabs   and\u00a0spaces \r\n\r\n",
    "Grüße aus Köln, ça va? Привет 你好，世界 こんにちは 안녕하세요 مرحبا עברית हिन्दी ไทย",
    "e\u0301 \u200b\ufeff 👩‍👩‍👧‍👦🏳️‍🌈 \x00\x07 \ue000 DON'T CamelCaseHTTPServer snake_case",
    'def f(x):\n    return {"a": [1, 2.5e-3, None]}  # ok\n',
    "<|start|>system<|message|>x<|end|><|return|><|call|><|channel|><|constrain|><|endoftext|>",
    "<|reserved_200000|> 200006 <|START|> <| end |>",
)

_LOADING = threading.Lock()


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The encoding every conversation is rendered with.

    Attributes:
        encoding: openai-harmony's encoding; the authority on structure.
        text: tiktoken over the same ranks, without special tokens.
        ranks_file: Where the ranks lie.
    """

    encoding: HarmonyEncoding
    text: tiktoken.Encoding
    ranks_file: Path

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` as ordinary text: no id of a special token can come out."""
        return self.text.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``, special tokens spelled out, broken UTF-8 replaced."""
        return self.encoding.decode(ids)

    def check_tokenizer(
        self,
        encode: Callable[[str], list[int]],
        token_to_id: Callable[[str], int | None],
        *,
        name: str,
    ) -> None:
        """Stop when a checkpoint's tokenizer gives other ids than this vocabulary.

        Args:
            encode: The tokenizer's ids of a text in which special tokens are matched, nothing
                added, e.g. ``lambda text: tokenizer.encode(text, add_special_tokens=False)``.
            token_to_id: The id of a special token, None where it is not known.
            name: What to call the tokenizer in the message.

        Raises:
            DataError: The first text or special token whose ids differ.
        """
        reserved = {f"<|reserved_{number}|>": number for number in range(200_000, VOCABULARY_SIZE)}
        for token, expected in (NAMED_SPECIAL_TOKENS | reserved).items():
            actual = token_to_id(token)
            unknown = actual is None and token in reserved  # not every release names them
            if actual != expected and not unknown:
                raise DataError(
                    f"{name}: special token {token} has id {actual}, the harmony format needs "
                    f"{expected}; use the tokenizer released with gpt-oss"
                )
        for probe in PROBES:
            expected_ids = self.encoding.encode(probe, allowed_special="all")
            actual_ids = encode(probe)
            if list(actual_ids) != expected_ids:
                raise DataError(
                    f"{name}: {probe[:40]!r} becomes {list(actual_ids)[:8]}..., o200k_harmony "
                    f"gives {expected_ids[:8]}...; the model would be trained on other tokens than "
                    "it is served with: use the tokenizer released with gpt-oss"
                )

    def check_tokenizer_file(self, tokenizer_json: Path) -> None:
        """``check_tokenizer`` for a checkpoint's ``tokenizer.json``.

        Raises:
            DataError: The file cannot be read, asks for what no gpt-oss does, or its ids differ.
        """
        tokenizer = open_tokenizer(tokenizer_json)
        self.check_tokenizer(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            tokenizer.token_to_id,
            name=str(tokenizer_json),
        )


def load_vocabulary(checkpoint: str | Path | None = None) -> Vocabulary:
    """Return the vocabulary, without any download; with a checkpoint, checked against it.

    The shipped ranks are used; where they are missing they are rebuilt from the checkpoint's
    ``tokenizer.json`` and kept in the user's cache.

    Args:
        checkpoint: Folder with ``tokenizer.json``. A folder without one, or a name on the Hub,
            raises: pass None and call ``check_tokenizer`` with the loaded tokenizer.

    Raises:
        DataError: The checkpoint's tokenizer gives other ids, or no ranks can be found.
    """
    tokenizer_json = None if checkpoint is None else Path(checkpoint) / "tokenizer.json"
    if tokenizer_json is not None and not tokenizer_json.is_file():
        raise DataError(
            f"{tokenizer_json}: not there; a checkpoint folder with its tokenizer.json is needed "
            "to compare token ids: put it beside the weights (where another program wrote them, "
            f"`gptoss-tune convert {shlex.quote(str(checkpoint))} --tokenizer DIR --out NEW` does)"
        )
    vocabulary = _load(str(_ranks_file(tokenizer_json)))
    if tokenizer_json is not None:
        digest = sha256_of(tokenizer_json)
        if digest not in KNOWN_TOKENIZERS:
            _check_once(vocabulary, tokenizer_json, digest)
    return vocabulary


@lru_cache(maxsize=8)
def _check_once(vocabulary: Vocabulary, tokenizer_json: Path, sha256: str) -> None:
    """Check a file that a run opens several times once, and again when its content is another."""
    vocabulary.check_tokenizer_file(tokenizer_json)


def vocabulary_from(ranks_file: Path) -> Vocabulary:
    """Return the vocabulary of a known ranks file, for worker processes.

    Raises:
        DataError: The file is missing, or its sha256 is not that of o200k_base.
    """
    return _load(str(ranks_file))


def tokenizer_ranks(path: Path | None = None) -> dict[bytes, int]:
    """Return the byte-pair ranks ``{token bytes: id}``, for building a tokenizer from them.

    Raises:
        DataError: The file is missing, or its sha256 is not that of o200k_base.
    """
    source = path or shipped("data") / "vocab" / RANKS_FILE
    try:
        raw = source.read_bytes()
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read ({error.strerror}); reinstall gptoss-tune"
        ) from error
    _check_sha256(raw, source)
    return {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in raw.splitlines() if line)
    }


def ranks_from_tokenizer_json(tokenizer_json: Path) -> bytes:
    """Rebuild the ranks file ``base64(token) rank`` from a checkpoint's ``tokenizer.json``.

    A fast tokenizer spells each byte as a printable character; the vocabulary without the special
    tokens, spelled back and sorted by id, is the ranks file byte for byte.

    Raises:
        DataError: The file is unreadable, or what comes out is not o200k_base.
    """
    try:
        vocab = json.loads(tokenizer_json.read_text(encoding="utf-8"))["model"]["vocab"]
        spelled = sorted((rank, token) for token, rank in vocab.items() if rank < ORDINARY_TOKENS)
        to_byte = {character: byte for byte, character in _byte_spelling().items()}
        lines = [
            base64.b64encode(bytes(to_byte[c] for c in token)) + b" %d\n" % rank
            for rank, token in spelled
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{tokenizer_json}: is not a byte-level BPE tokenizer ({type(error).__name__}: "
            f"{error}); copy it again from the released checkpoint"
        ) from error
    raw = b"".join(lines)
    _check_sha256(raw, tokenizer_json)
    return raw


def _ranks_file(tokenizer_json: Path | None) -> Path:
    try:
        candidate = shipped("data") / "vocab" / RANKS_FILE
    except FileNotFoundError:
        candidate = None
    if candidate is not None and candidate.is_file():
        return candidate
    cached = _cache_folder() / RANKS_FILE
    if cached.is_file():
        return cached
    if tokenizer_json is None:
        raise DataError(
            f"the vocabulary file {RANKS_FILE} is neither in the shipped data nor at {cached}; "
            "reinstall gptoss-tune, or name a checkpoint folder whose tokenizer.json holds it"
        )
    _write_atomically(cached, ranks_from_tokenizer_json(tokenizer_json))
    return cached


@lru_cache(maxsize=2)
def _load(ranks_file: str) -> Vocabulary:
    import openai_harmony
    import tiktoken

    path = Path(ranks_file)
    ranks = tokenizer_ranks(path)
    with _LOADING, _harmony_reads_from(path.parent):
        encoding = openai_harmony.load_harmony_encoding("HarmonyGptOss")
    text = tiktoken.Encoding(
        "o200k_text", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    for probe in PROBES:
        if text.encode_ordinary(probe) != encoding.encode(probe, disallowed_special=()):
            raise MachineError(
                f"tiktoken {tiktoken.__version__} and openai-harmony give different ids for "
                f"{probe[:40]!r}; install the versions of constraints.txt"
            )
    return Vocabulary(encoding=encoding, text=text, ranks_file=path)


@contextmanager
def _harmony_reads_from(folder: Path) -> Iterator[None]:
    """Point openai-harmony at a folder of ranks while it loads, then put the setting back."""
    name = "TIKTOKEN_ENCODINGS_BASE"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _check_sha256(raw: bytes, source: Path) -> None:
    digest = hashlib.sha256(raw).hexdigest()
    if digest != RANKS_SHA256:
        raise DataError(
            f"{source}: the ranks have sha256 {digest[:12]}..., o200k_base has "
            f"{RANKS_SHA256[:12]}...; the file is damaged or of another model: get it again"
        )


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gptoss-tune" / "vocab"


def _write_atomically(path: Path, raw: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(raw)
        os.replace(file.name, path)
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to a writable folder"
        ) from error


def _byte_spelling() -> dict[int, str]:
    """Return how byte-level BPE spells each byte: itself where printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others: Any = (byte for byte in range(256) if byte not in printable)
    spelling = {byte: chr(byte) for byte in printable}
    spelling |= {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    return spelling
