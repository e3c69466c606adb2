"""Pairs and labelled answers as data sets: prompts, documents, weights, packing, drops."""

import numpy as np
import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.kinds import SampleKind, kind_of
from gptoss_tune.harmony.dataset.load import load_dataset, render_source, row_sources
from gptoss_tune.harmony.dataset.mismatched import answers_that_fit, partners
from gptoss_tune.recipe import DataSection
from gptoss_tune.recipe.schema import METHODS

TOOLS = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}]


def says(content, thinking=None, **more):
    thoughts = {} if thinking is None else {"thinking": thinking}
    return {"role": "assistant", "content": content, **thoughts, **more}


def asks(content):
    return {"role": "user", "content": content}


def pair(number, **more):
    row = {
        "prompt": f"Question {number}?",
        "chosen": [says(f"Good {number}", "Think well.")],
        "rejected": [says(f"Bad {number}, and long at that", "Think badly.")],
    }
    return row | more


@pytest.fixture
def load(vocabulary, write_jsonl):
    def run(rows, rows_are="pair", analysis="counted", split="train", seed=0, **settings):
        train = write_jsonl(rows)
        data = DataSection.model_validate({"train": train, **settings})
        kind = SampleKind(rows_are, analysis)
        return load_dataset(data, split=split, vocabulary=vocabulary, seed=seed, kind=kind)

    return run


def documents(row, prefix=""):
    """Return the documents of a row: ids, weights."""
    starts = np.flatnonzero(np.asarray(row[f"{prefix}position_ids"]) == 0)
    ends = [*starts[1:], len(row[f"{prefix}input_ids"])]
    return [
        (row[f"{prefix}input_ids"][a:b], np.asarray(row[f"{prefix}loss_weights"][a:b]))
        for a, b in zip(starts, ends, strict=True)
    ]


def counted(row, vocabulary, prefix=""):
    """Return the counted text of each document."""
    return [
        vocabulary.decode([token for token, weight in zip(ids, weights, strict=True) if weight])
        for ids, weights in documents(row, prefix)
    ]


def before(document):
    ids, weights = document
    return ids[: int((weights != 0).argmax())]


FIRST = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}"


def test_both_answers_follow_the_very_same_prompt_and_all_of_them_counts(load, vocabulary):
    rows = load([pair(1), pair(2, weight=0.5)])
    assert rows.num_rows == 2 and rows[0]["branches"] == [1, -1] and rows[0]["samples"] == [0, 0]
    for number, row in enumerate(rows, start=1):
        chosen, rejected = documents(row)
        assert before(chosen) == before(rejected)
        prompt = vocabulary.decode(before(chosen))
        assert prompt.endswith(
            f"<|start|>user<|message|>Question {number}?<|end|><|start|>assistant"
        )
        bad = f"Bad {number}, and long at that"
        assert counted(row, vocabulary) == [
            FIRST.format("Think well.", f"Good {number}") + "<|return|>",
            FIRST.format("Think badly.", bad) + "<|return|>",
        ]
        for _, weights in (chosen, rejected):
            assert set(weights.tolist()) == {0.0, 0.5 if number == 2 else 1.0}


def test_whole_conversations_count_from_where_they_part(load, vocabulary):
    """Earlier answers are context, without their thoughts, as a server would send them."""
    shared = [asks("a?"), says("One.", "Thought of one."), asks("b?")]
    row = {"chosen": [*shared, says("Two.", "Same.")], "rejected": [*shared, says("Two!", "Same.")]}
    (found,) = load([row])
    chosen, rejected = documents(found)
    prompt = vocabulary.decode(before(chosen))
    assert before(chosen) == before(rejected) and "One." in prompt
    assert "Thought of one." not in prompt and prompt.endswith("b?<|end|><|start|>assistant")
    # A thought that both begin with is written by the model: it is part of both answers.
    assert counted(found, vocabulary) == [
        FIRST.format("Same.", "Two.") + "<|return|>",
        FIRST.format("Same.", "Two!") + "<|return|>",
    ]


def test_turns_after_the_prompt_are_documents_in_the_context_they_are_served_in(load, vocabulary):
    row = pair(1, chosen=[says("A", "Ta"), asks("More?"), says("B", "Tb")])
    (found,) = load([row])
    assert found["branches"] == [1, 1, -1] and found["samples"] == [0, 0, 0]
    first, second, _ = counted(found, vocabulary)
    assert first == FIRST.format("Ta", "A") + "<|return|>"
    assert second == FIRST.format("Tb", "B") + "<|return|>"
    context = vocabulary.decode(before(documents(found)[1]))
    assert "Ta" not in context and "final<|message|>A<|end|>" in context


def test_first_messages_of_an_answer_may_be_context(load, vocabulary):
    """They differ and do not count: no part of the prompt, which is the same."""
    turns = [
        [says(first, weight=0), asks("And?"), says(second)]
        for first, second in (("one", "two"), ("uno", "dos"))
    ]
    (found,) = load([pair(1, chosen=turns[0], rejected=turns[1])])
    last = "<|channel|>final<|message|>{}<|return|>"
    assert counted(found, vocabulary) == [last.format("two"), last.format("dos")]


def test_calls_in_either_branch(load, vocabulary):
    call = {"name": "get_time", "arguments": "{}"}
    calls = says(None, "Ask the clock.", tool_calls=[{"id": "1", "function": call}])
    row = pair(1, tools=TOOLS, chosen=[calls], rejected=[says("It is noon.", "Guess.")])
    (found,) = load([row])
    chosen, rejected = counted(found, vocabulary)
    assert "to=functions.get_time" in chosen and chosen.endswith("<|call|>")
    assert rejected == FIRST.format("Guess.", "It is noon.") + "<|return|>"
    assert before(documents(found)[0]) == before(documents(found)[1])


@pytest.mark.parametrize("analysis", ["counted", "ignored"])
def test_analysis_that_is_ignored_is_context(load, vocabulary, analysis):
    (found,) = load([pair(1)], analysis=analysis)
    chosen, _ = counted(found, vocabulary)
    assert ("Think well." in chosen) == (analysis == "counted")
    assert chosen.endswith("<|channel|>final<|message|>Good 1<|return|>")


def test_packing_keeps_a_pair_in_its_row_and_changes_no_token(load):
    rows = [pair(n, chosen=[says("Good " * n)]) for n in range(1, 12)]
    alone, packed = load(rows), load(rows, packing=True, max_length=600)
    assert packed.num_rows < alone.num_rows and max(packed["length"]) <= 600
    one_by_one = sorted(str(document) for row in alone for document in _listed(row))
    together = sorted(str(document) for row in packed for document in _listed(row))
    assert one_by_one == together
    for row in packed:
        owners = list(zip(row["samples"], row["branches"], strict=True))
        assert owners == [(n, sign) for n in range(len(owners) // 2) for sign in (1, -1)]
        assert len(row["sources"]) == len(owners)


def _listed(row):
    return [(ids, weights.tolist()) for ids, weights in documents(row)]


def test_a_pair_is_dropped_as_a_whole_and_counted(load, vocabulary, write_jsonl):
    long = pair(2, rejected=[says("word " * 300)])
    data = DataSection(train=write_jsonl([pair(1), long, pair(3)]), max_length=300)
    found = render_source(data.train[0], data, vocabulary, SampleKind("pair"))
    assert found.report.counts["too_long"] == 1 and found.report.counts["samples"] == 2
    assert found.report.too_long[0].endswith(":2")
    with pytest.raises(DataError, match=r":2: both branches of a pair have .* tokens"):
        load([pair(1), long], max_length=300, too_long="error")


def test_equal_answers_and_ties_are_dropped_and_counted(vocabulary, write_jsonl):
    tie = {"context": [asks("a?")], "response1": "x", "response2": "y", "overall_preference": 0}
    rows = [
        pair(1),
        pair(2, rejected=[says("Good 2", "Think well.")]),
        tie,
        pair(4, chosen=[says("Short")], rejected=[says("Short and long", "Thinks.")]),
    ]
    data = DataSection(train=write_jsonl(rows))
    counts = render_source(data.train[0], data, vocabulary, SampleKind("pair")).report.counts
    assert (counts["equal_answers"], counts["ties"], counts["samples"]) == (1, 1, 2)
    assert (counts["lost_analysis"], counts["differ_in_length"]) == (1, 1)


def test_prompts_that_differ_are_refused(load):
    row = {"chosen": [asks("a?"), says("x")], "rejected": [asks("b?"), says("y")]}
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        load([row])


def test_rows_know_their_places_packed_or_not(vocabulary, write_jsonl):
    rows = [pair(n) for n in range(6)]
    held = write_jsonl(rows[:2], "eval.jsonl")
    for packing in (False, True):
        data = DataSection(train=write_jsonl(rows), eval=held, packing=packing, max_length=700)
        about = {"vocabulary": vocabulary, "kind": SampleKind("pair")}
        found = load_dataset(data, split="train", **about)
        for number, row in enumerate(found):
            places = row_sources(data, [number], **about)
            for place, (ids, _) in zip(places, documents(row)[::2], strict=True):
                line = int(place.rpartition(":")[2])
                assert f"Question {line - 1}?" in vocabulary.decode(ids)
        assert row_sources(data, [0], **about, split="eval")[0].startswith(held)


def test_labelled_answers_carry_the_answers_of_others(load, vocabulary):
    rows = [
        {"prompt": f"Q{n}?", "completion": f"A{n}" + " more" * n, "label": n % 2 == 0}
        for n in range(7)
    ]
    found = load(rows, "label", packing=True, max_length=1024)
    signs = [sign for row in found for sign in row["branches"]]
    assert sorted(signs) == [-1, -1, -1, 1, 1, 1, 1]
    used = []
    for row in found:
        own, other = documents(row), documents(row, "kl_")
        assert len(own) == len(other) == len(row["samples"])
        texts = (counted(row, vocabulary, prefix) for prefix in ("", "kl_"))
        for mine, theirs, answer, mismatched in zip(own, other, *texts, strict=True):
            assert before(mine) == before(theirs) and answer != mismatched
            used.append(mismatched)
    assert sorted(used) == sorted(
        f"<|channel|>final<|message|>A{n}{' more' * n}<|return|>" for n in range(7)
    )


def test_partners_are_of_other_prompts():
    keys, lengths = np.repeat(np.arange(20, dtype=np.uint64), 2), np.full(40, 7)
    found = partners(keys, lengths, seed=3)
    assert (keys[found] != keys).all() and (found == partners(keys, lengths, seed=3)).all()
    assert (found != partners(keys, lengths, seed=4)).any()
    for count in (2, 3, 5, 8):  # each gives once
        assert sorted(partners(keys[::2][:count], lengths[:count], seed=0)) == list(range(count))
    with pytest.raises(DataError, match="one row alone"):
        partners(keys[:1], lengths[:1], seed=0)


def test_partners_have_answers_of_like_length():
    draw = np.random.default_rng(0)
    lengths = np.where(np.arange(400) % 20 == 0, 1900, draw.integers(20, 60, 400))
    found = partners(np.arange(400, dtype=np.uint64), lengths, seed=0)
    assert np.abs(lengths[found] - lengths).max() <= 2


def test_rows_of_mismatched_documents_are_no_longer_than_a_row(load):
    rows = [
        {"prompt": f"Q{n}?", "completion": "word " * (150 if n % 5 == 0 else 5), "label": True}
        for n in range(21)
    ]
    found = load(rows, "label", packing=True, max_length=512)
    longest = [len(row["kl_input_ids"]) for row in found]
    assert max(longest) <= 512 and sum(longest) > 0.8 * sum(found["length"])
    starts = np.array([0, 3])
    taken = answers_that_fit(np.full(5, 10), np.array([5, 90, 40, 7, 8]), starts, 100)
    assert taken.tolist() == [5, 33, 32, 7, 8] or taken.tolist() == [5, 32, 32, 7, 8]


def test_pairs_of_one_prompt_are_held_out_together(load):
    rows = [pair(n // 3, chosen=[says(f"Good {n}")]) for n in range(30)]
    sides = [load(rows, eval_fraction=0.3, split=split) for split in ("train", "eval")]
    asked = [{str(before(documents(row)[0])) for row in side} for side in sides]
    assert not asked[0] & asked[1]
    assert (len(sides[1]), len(sides[0])) == (9, 21)


def test_a_row_alone_of_kto_is_refused_by_name(load):
    with pytest.raises(DataError, match="KTO"):
        load([{"prompt": "a?", "completion": "b", "label": True}], "label")


def test_every_method_has_its_kind_of_rows():
    kinds = {
        name: kind_of(section.model_validate({"name": name})).rows
        for name, section in METHODS.items()
    }
    pairs = dict.fromkeys(("dpo", "ipo", "simpo", "orpo"), "pair")
    assert kinds == {"sft": "conversation", "kto": "label", "grpo": "prompt", **pairs}
