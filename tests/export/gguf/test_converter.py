"""Our file against llama.cpp's converter's of the same folder: keys, tensors, and every byte."""

import pytest

from gptoss_tune.export.gguf import layout
from gptoss_tune.export.merge.steps import plan_steps
from gptoss_tune.weights import open_checkpoint

QUICK = "words"
CASES = [
    pytest.param(name, marks=() if name == QUICK else pytest.mark.slow)
    for name in (
        *("tuned", "dense", "from-bf16", "gpt-oss-20b-mine-v2.1", "other", "acme_bot 7b"),
        *("words", "wide"),
    )
]


def test_every_recorded_case_is_compared(golden, golden_cases):
    assert {case.values[0] for case in CASES} == set(golden["cases"]) == set(golden_cases.CASES)
    assert golden["converter"]["gguf-py"] == "0.19.0"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_file_is_the_converters_byte_for_byte(name, golden, golden_cases, gguf, tmp_path):
    expert_format, _, _ = golden_cases.CASES[name]
    base = golden_cases.make_base(name, tmp_path / "base")
    gguf.merge(base, None, tmp_path / name, expert_format=expert_format)
    ours, theirs = golden_cases.listing(tmp_path / name), golden["cases"][name]
    assert ours["tensors"] == theirs["tensors"]
    assert list(ours["tensors"]) == list(theirs["tensors"])
    named = "tokenizer.chat_templates"
    if named in theirs["keys"]:
        # The converter lists them in an order that differs from process to process; we sort.
        listed = theirs["keys"][named][1]
        assert ours["keys"][named][1] == sorted(listed)
        listed.sort()
        assert ours["keys"] == theirs["keys"]
        return
    assert ours["keys"] == theirs["keys"]
    assert list(ours["keys"]) == list(theirs["keys"])
    assert ours["sha256"] == theirs["sha256"]


def test_the_order_is_that_of_a_folder_in_several_shards(
    golden, golden_cases, tmp_path, monkeypatch
):
    base = open_checkpoint(golden_cases.make_base(golden_cases.SHARDED, tmp_path / "base"))
    monkeypatch.setattr(layout, "MAX_SHARD_SIZE", golden_cases.SHARD_SIZE)
    planned = layout.plan_tensors(plan_steps(base, [], "mxfp4"))
    assert list(layout.by_name(planned)) == golden["sharded_order"]
    assert golden["sharded_order"] != list(golden["cases"][golden_cases.SHARDED]["tensors"])
