"""Tokenizers made to deceive: patterns that never end, texts that grow, pieces left to chance."""

import json

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.tokenizer_file import open_tokenizer

PIECES = ("pre_tokenizer", "pretokenizers", 0)
BOMBS = {
    "a pattern that never ends": (
        (*PIECES, "pattern"), {"Regex": r"(\w+\s*)+#|.+"}, "cuts text by"
    ),
    "a pattern beside the known one": (
        ("pre_tokenizer", "pretokenizers"),
        [
            {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(a+)+$"},
             "behavior": "Isolated", "invert": False}]},
        ],
        "cuts text by",
    ),
    "a pattern that is gigabytes when compiled": (
        (*PIECES, "pattern"), {"Regex": "(((a{999}){999}){999}){999}"}, "cuts text by"
    ),
    "doubled forty times": (
        ("normalizer",),
        {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40},
        r"its normalizer is 'Replace'; gpt-oss has Sequence",
    ),
    "a decoder with a pattern": (
        ("decoder",),
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
        "its decoder is 'Replace'",
    ),
    "tokens by chance": (("model", "dropout"), 0.001, "with dropout 0.001"),
    "another model": (("model", "type"), "Unigram", "its model is 'Unigram'"),
    "a part without a kind": ((*PIECES, "type"), None, "its pre_tokenizer is None"),
    "no part": (("pre_tokenizer",), ["Split"], "is not a part of a tokenizer"),
}  # fmt: skip


@pytest.fixture(scope="session")
def plain_tokenizer(original):
    """The tokenizer without its merges, which make it slow to write and do not matter here."""
    file = json.loads((original / "tokenizer.json").read_text(encoding="utf-8"))
    file["model"].update(vocab={"a": 0}, merges=[])
    return json.dumps(file | {"added_tokens": []})


@pytest.mark.parametrize("case", BOMBS)
def test_a_tokenizer_that_would_hang_grow_or_gamble(
    base, place, tools, refused, plain_tokenizer, case
):
    """By every door: data is rendered for a base, ``verify`` and ``chat`` open a merged folder."""
    keys, value, reason = BOMBS[case]
    changed = json.loads(plain_tokenizer)
    part = changed
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    file = base / "tokenizer.json"
    tools.replace(file, changed)
    with pytest.raises(DataError, match=reason):
        open_tokenizer(file)
    if case == "a pattern that never ends":
        refused(["chat", base, "--prompt", "hello"], reason, file=file)


def test_a_tokenizer_with_a_bomb_stops_data_and_verify(
    base, recipe, adapter, place, tools, refused, plain_tokenizer
):
    text = plain_tokenizer.replace("{1,3}", "{1,3}{1,99}{1,99}{1,99}")
    tools.replace(base / "tokenizer.json", text)
    refused(["train", recipe], "cuts text by", file=base, may_write=["run"])
    whole = ["verify", base, "--base", base, "--adapter", adapter]
    refused(whole, "cuts text by", file=base / "tokenizer.json")


def test_padding_and_truncation_of_a_saved_tokenizer_are_left_aside(plain_tokenizer, tmp_path):
    """Trainers save them with the tokenizer; a stranger may ask for a billion tokens of padding."""
    file = json.loads(plain_tokenizer)
    file["padding"] = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0,
                       "pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    file["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst",
                          "stride": 0}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    assert open_tokenizer(tmp_path / "tokenizer.json").encode("aaa").ids == [0, 0, 0]
