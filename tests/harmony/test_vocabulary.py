"""The vocabulary: offline, checked, and the same ids as every other tokenizer of gpt-oss."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter

from gptoss_tune.errors import DataError
from gptoss_tune.harmony import vocabulary as room
from gptoss_tune.harmony.vocabulary import (
    NAMED_SPECIAL_TOKENS,
    ORDINARY_TOKENS,
    RANKS_SHA256,
    SPLIT_PATTERN,
    load_vocabulary,
    ranks_from_tokenizer_json,
    tokenizer_ranks,
)
from gptoss_tune.shipped import shipped
from gptoss_tune.testing.tiny import tokenizer_json as tokenizer_json_of_tiny


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory):
    """A fast tokenizer as a checkpoint has it, built by transformers' own converter."""
    folder = tmp_path_factory.mktemp("checkpoint")
    extra = [
        next((t for t, i in NAMED_SPECIAL_TOKENS.items() if i == number), f"<|reserved_{number}|>")
        for number in range(ORDINARY_TOKENS, 200_019)
    ]
    converter = TikTokenConverter(
        vocab_file=str(shipped("data") / "vocab" / room.RANKS_FILE),
        pattern=SPLIT_PATTERN,
        extra_special_tokens=extra,
    )
    converter.converted().save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_the_split_pattern_is_tiktoken_s():
    tiktoken_ext = pytest.importorskip("tiktoken_ext.openai_public")
    constants = [c for c in tiktoken_ext.o200k_base.__code__.co_consts if isinstance(c, tuple)]
    parts = [part for c in constants for part in c if isinstance(part, str)]
    assert "|".join(part for part in parts if "\\" in part) == SPLIT_PATTERN


def test_a_known_file_is_not_read_and_would_pass(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json_of_tiny())
    room.vocabulary_from(load_vocabulary().ranks_file).check_tokenizer_file(path)
    read = []
    monkeypatch.setattr(room, "_check_once", lambda _, file, digest: read.append(digest))
    load_vocabulary(tmp_path)
    path.write_bytes(path.read_bytes() + b"\n")
    load_vocabulary(tmp_path)
    assert not set(read) & set(room.KNOWN_TOKENIZERS) and len(read) in (1, 2)
    if len(read) == 2:
        pytest.skip("this release of tokenizers writes the same tokenizer in other bytes")


def test_nothing_is_downloaded_and_the_environment_is_put_back(tmp_path):
    code = (
        "import os, socket\n"
        "def refuse(*_a, **_k): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = refuse\n"
        "from gptoss_tune.harmony.vocabulary import load_vocabulary\n"
        "ids = load_vocabulary().encode('Hello, world!')\n"
        "assert ids == [13225, 11, 2375, 0], ids\n"
        "assert os.environ.get('TIKTOKEN_ENCODINGS_BASE') == os.environ.get('EXPECTED')\n"
    )
    for setting in ({"TIKTOKEN_ENCODINGS_BASE": "/nowhere", "EXPECTED": "/nowhere"},):
        environment = {k: v for k, v in os.environ.items() if k != "TIKTOKEN_ENCODINGS_BASE"}
        environment |= {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path), **setting}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_the_ranks_are_rebuilt_from_a_checkpoint_byte_for_byte(tokenizer_json):
    raw = ranks_from_tokenizer_json(tokenizer_json)
    assert raw == (shipped("data") / "vocab" / room.RANKS_FILE).read_bytes()
    assert len(tokenizer_ranks()) == ORDINARY_TOKENS


@pytest.mark.slow
def test_without_shipped_data_the_checkpoint_s_ranks_are_cached(
    tokenizer_json, tmp_path, monkeypatch
):
    def missing(folder):
        raise FileNotFoundError(folder)

    monkeypatch.setattr(room, "shipped", missing)
    with pytest.raises(DataError, match=r"neither in the shipped data nor at .*checkpoint folder"):
        load_vocabulary()
    vocabulary = load_vocabulary(tokenizer_json.parent)
    cached = tmp_path / "cache" / "gptoss-tune" / "vocab" / room.RANKS_FILE
    assert vocabulary.ranks_file == cached
    assert [file.name for file in cached.parent.iterdir()] == [room.RANKS_FILE]
    assert vocabulary.encode("Hello") == [13225]
    # Read again from the cache, now without a checkpoint; and a damaged cache is refused.
    assert load_vocabulary().ranks_file == cached
    room._load.cache_clear()
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"sha256 .*{RANKS_SHA256[:12]}"):
        load_vocabulary()
    room._load.cache_clear()


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json):
    return Tokenizer.from_file(str(tokenizer_json))


def check(vocabulary, tokenizer, **changes):
    functions = {
        "encode": lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        "token_to_id": tokenizer.token_to_id,
    }
    vocabulary.check_tokenizer(**(functions | changes), name="tokenizer.json")


def test_a_checkpoint_with_another_vocabulary_stops_the_run(tokenizer, vocabulary):
    swapped = {13225: 24912, 24912: 13225}  # Hello, hello

    def encode(text):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [swapped.get(token, token) for token in ids]

    check(vocabulary, tokenizer)
    with pytest.raises(DataError, match=r"tokenizer\.json: .Hello, world.*use the tokenizer rel"):
        check(vocabulary, tokenizer, encode=encode)


def test_a_checkpoint_with_another_special_token_stops_the_run(tokenizer, vocabulary):
    def token_to_id(token):
        return None if token == "<|call|>" else tokenizer.token_to_id(token)

    def reserved(token):
        return 13225 if token == "<|reserved_200013|>" else tokenizer.token_to_id(token)

    with pytest.raises(DataError, match=r"special token <\|reserved_200013\|> has id 13225"):
        check(vocabulary, tokenizer, token_to_id=reserved)
    with pytest.raises(DataError, match=r"special token <\|call\|> has id None, .* 200012"):
        check(vocabulary, tokenizer, token_to_id=token_to_id)


def test_a_checkpoint_with_another_way_to_cut_text_stops_the_run(tokenizer, vocabulary):
    released = tokenizer.pre_tokenizer
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, released])
    try:
        with pytest.raises(DataError, match="o200k_harmony gives"):
            check(vocabulary, tokenizer)
    finally:
        tokenizer.pre_tokenizer = released
    check(vocabulary, tokenizer)


def test_ranks_of_another_model_are_refused(tmp_path):
    vocab = {"Hello": 0, "\u0120world": 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    with pytest.raises(DataError, match=f"sha256 .*{RANKS_SHA256[:12]}"):
        ranks_from_tokenizer_json(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "{", '{"model": {"vocab": [1]}}', '{"model": 3}'])
def test_a_broken_tokenizer_file_is_one_clear_error(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=r"tokenizer\.json: .*released checkpoint"):
        load_vocabulary(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json: .*released checkpoint"):
        ranks_from_tokenizer_json(tmp_path / "tokenizer.json")


def test_a_folder_without_a_tokenizer_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json: not there"):
        load_vocabulary(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_tiktoken_and_harmony_agree_on_any_text(text):
    vocabulary = load_vocabulary()
    ids = vocabulary.encode(text)
    assert ids == vocabulary.encoding.encode(text, disallowed_special=())
    assert vocabulary.decode(ids) == text


def test_no_token_is_longer_than_the_bound_that_skips_tokenising():
    assert max(map(len, tokenizer_ranks())) == room.LONGEST_TOKEN_BYTES
