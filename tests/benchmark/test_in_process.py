"""A base and a run on it: one set of weights, two identities, other answers; freed at the end."""

import pytest
import torch

from gptoss_tune.benchmark.subjects.named import read_subjects
from gptoss_tune.benchmark.subjects.open import Access, open_subjects
from gptoss_tune.benchmark.subjects.subject import Asking
from gptoss_tune.model.build import build
from gptoss_tune.weights import open_checkpoint


@pytest.fixture
def adapter(recipe, base, randomise_adapters, tmp_path):
    model = build(recipe(), open_checkpoint(str(base)), "cpu").model
    randomise_adapters(model)
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "adapter"


def opened(base, renderer, text, dtype="float32"):
    named = read_subjects([text], str(base))
    access = Access(device=torch.device("cpu"), base=str(base), dtype=dtype, batch_size=2)
    return open_subjects(named, renderer, access)


def test_base_and_run_share_weights_and_answer_otherwise(base, adapter, renderer, questions):
    first, tuned = opened(base, renderer, f"base,tuned={adapter}")
    assert first.weights is tuned.weights
    assert first.identity["adapter"] is None and len(tuned.identity["adapter"]) == 64
    assert first.identity["base"] == tuned.identity["base"]
    asked, asking = questions({"prompt": "Hi"}, {"prompt": "2+2?"}, {"prompt": "Why?"}), Asking(6)

    def said(subject):
        found = dict(subject.ask(asked, asking))
        assert sorted(found) == [0, 1, 2] and all(r.tokens <= 6 for r in found.values())
        return [found[n].messages for n in range(3)]

    before, after = said(first), said(tuned)
    assert before != after and said(first) == before
    first.close()
    assert tuned.weights._model is not None, "the run still needs them"
    tuned.close()
    assert tuned.weights._model is None

    # Each alone gives what both together gave: the shared weights are no other model.
    (alone,) = opened(base, renderer, "base")
    (run,) = opened(base, renderer, f"tuned={adapter}")
    assert alone.identity == first.identity and said(alone) == before
    assert run.identity == tuned.identity and said(run) == after


def test_how_weights_are_held_is_part_of_what_answers(base, renderer):
    (narrow,) = opened(base, renderer, "base", "bfloat16")
    (wide,) = opened(base, renderer, "base", "float32")
    assert narrow.identity != wide.identity
