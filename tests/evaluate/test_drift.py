"""Divergence, refusals and thinking, against float64 from plain transformers' logits."""

import json

import pytest
import torch

from gptoss_tune.distributed import Ranks
from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.drift import (
    divergence_from_base,
    is_refusal,
    read_references,
    reasoning_tokens,
    refusal_rate,
)
from gptoss_tune.evaluate.evaluator import Evaluator, figures
from gptoss_tune.evaluate.generate import Generation, answer, evaluating
from gptoss_tune.evaluate.parse import read_answer
from gptoss_tune.evaluate.prompts import read_questions
from gptoss_tune.evaluate.tables import one_line
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.model.causal_lm import divergence
from gptoss_tune.recipe import DataSection, EvaluationSection
from gptoss_tune.shipped import shipped

CPU = torch.device("cpu")


@pytest.fixture
def examples(vocabulary, references):
    renderer = Renderer(vocabulary, RenderSettings())
    return read_references([references], renderer, limit=2, max_length=256)


def in_float64(plain, examples):
    """Sum p (log p - log q) in float64 from whole logits, and the channel of each token."""
    found = []
    for example in examples:
        ids = torch.tensor(example.input_ids.tolist())[None]
        with torch.no_grad():
            with plain.disable_adapter():
                log_p = plain(ids).logits[0].double().log_softmax(-1)
            log_q = plain(ids).logits[0].double().log_softmax(-1)
        each = (log_p.exp() * (log_p - log_q)).sum(-1)
        trained = (example.loss_weights != 0).nonzero()[0]
        found += [(float(each[at - 1]), int(example.channels[at])) for at in trained]
    return found


def test_divergence_from_the_base_is_that_of_plain_transformers(tuned, plain, examples):
    assert len(examples) == 2
    with evaluating(tuned):
        found = divergence_from_base(tuned, examples, Ranks(), CPU)
    expected = in_float64(plain, examples)
    assert found["kl_tokens"] == len(expected) > 20
    mean = sum(kl for kl, _ in expected) / len(expected)
    assert mean > 0.01
    # fp32 forward passes of two implementations; measured 2e-6 on this model.
    assert found["kl"] == pytest.approx(mean, rel=1e-4)
    for name, number in (("analysis", 1), ("final", 3)):
        of_channel = [kl for kl, channel in expected if channel == number]
        mean = sum(of_channel) / len(of_channel)
        assert found["kl_by_channel"][name] == pytest.approx(mean, rel=1e-4)


def test_a_model_is_at_no_distance_before_its_first_update(tuned, examples):
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    with evaluating(tuned):
        assert divergence_from_base(tuned, examples, Ranks(), CPU)["kl"] == 0.0


def test_a_model_that_computes_nan_is_evaluated_and_said_so(tuned, examples):
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.fill_(float("nan"))
    prompts = [list(range(9)), list(range(5))]
    with evaluating(tuned):
        found = divergence_from_base(tuned, examples, Ranks(), CPU)
        for temperature in (0.0, 1.0):
            assert len(answer(tuned, prompts, Generation(2, temperature), Ranks())) == 2
    assert found["kl"] is None and set(found["kl_by_channel"].values()) == {None}
    report = {
        "samples": [],
        "graded": {"passed": 0, "total": 0},
        "health": {"valid": 0, "total": 0},
        "drift": found,
    }
    assert figures(report) == {} and "not finite" in one_line(report)
    json.dumps(report, allow_nan=False)


def test_chunks_give_what_all_rows_at_once_give_and_stay_small(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    old, new = (torch.randn(11, 8, generator=generator) for _ in range(2))
    head = torch.randn(50, 8, generator=generator)
    log_p, log_q = ((x.double() @ head.double().T).log_softmax(-1) for x in (old, new))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    sizes = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w: sizes.append(len(x)) or linear(x, w)
    )
    for rows in (1, 4, 11, 50):
        sizes.clear()
        found = divergence(old, new, head, chunk_bytes=rows * 50 * 4)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        assert max(sizes) == min(rows, 11)


def test_references_without_an_answer_are_refused(vocabulary, write_rows):
    path = write_rows("asks.jsonl", {"prompt": "2 + 2?"})
    with pytest.raises(DataError, match=r"asks.jsonl:1: .*without an answer"):
        read_references([path], Renderer(vocabulary, RenderSettings()), limit=9, max_length=99)


def test_every_file_of_an_evaluation_is_read_as_the_recipe_has_rows_read(vocabulary, write_rows):
    def evaluator(*messages, **settings):
        path = write_rows("rows.jsonl", {"messages": list(messages)})
        section = {"prompts": [path], "drift": {"references": path, "probes": path}}
        data = DataSection.model_validate({"train": path, **settings})
        return Evaluator(EvaluationSection.model_validate(section), data, vocabulary, seed=0)

    asked = evaluator(
        {"role": "Klant", "content": "2 + 2?"},
        {"role": "Bot", "content": "<think>Add.</think>4"},
        roles={"Klant": "user", "Bot": "assistant"},
        thinking_tags="split",
    )
    usual = evaluator(
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "thinking": "Add.", "content": "4"},
    )
    for name in ("questions", "probes"):
        (got,), (expected,) = getattr(asked, name), getattr(usual, name)
        assert got.prompt_ids == expected.prompt_ids
    (got,), (expected,) = asked.references, usual.references
    assert got.input_ids.tolist() == expected.input_ids.tolist()


REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "I cannot provide instructions for this.",
    "Sorry! I am unable to help with that.",
    "I must decline to answer.",
    "I won't help with this.",
    "That goes against our policy.",
    "I’m sorry, but that isn’t something I can help with.",
)
ANSWERS = (
    "To kill a process, use `kill PID`.",
    "I'm sorry to hear that. Try restarting it.",
    "I can't recommend the second hotel, but the first is good.",
    "You cannot divide by zero.",
    "The guard cannot help the king in this position.",
    "",
)


def test_refusals_are_told_from_answers():
    assert [text for text in REFUSALS if not is_refusal(text)] == []
    assert [text for text in ANSWERS if is_refusal(text)] == []
    assert not is_refusal("Here is how. " * 20 + REFUSALS[0])


def test_rates_and_lengths(vocabulary, write_rows):
    def said(text):
        ids = vocabulary.encoding.encode(text, allowed_special="all")
        return read_answer(ids, vocabulary.encoding)

    refusal = said(f"<|channel|>final<|message|>{REFUSALS[0]}<|return|>")
    thought = said("<|channel|>analysis<|message|>one two three<|end|>")
    helpful = said(
        "<|channel|>analysis<|message|>one two<|end|><|start|>assistant"
        "<|channel|>final<|message|>Use kill.<|return|>"
    )
    rates = refusal_rate([refusal, thought, helpful, helpful])
    assert rates == {"refused": 0.25, "unanswered": 0.25}
    rows = [{"prompt": "a", "reasoning_effort": e} for e in ("low", "low", "high")]
    questions = read_questions(
        [write_rows("q.jsonl", *rows)],
        Renderer(vocabulary, RenderSettings()),
        limit=9,
        efforts=["medium"],
        max_new_tokens=8,
    )
    assert reasoning_tokens(questions, [thought, helpful, helpful]) == {"low": 2.5, "high": 2.0}


def test_the_shipped_probes_can_be_asked_and_are_of_both_kinds(vocabulary):
    path = shipped("data") / "probes" / "refusal.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {row["kind"] for row in rows} == {"ordinary", "sounds_harmful"}
    for kind in ("ordinary", "sounds_harmful"):
        assert sum(row["kind"] == kind for row in rows) >= 12
    assert len({row["prompt"] for row in rows}) == len(rows)
    renderer = Renderer(vocabulary, RenderSettings())
    questions = read_questions(
        [str(path)], renderer, limit=1000, efforts=["low"], max_new_tokens=64
    )
    assert len(questions) == len(rows)
