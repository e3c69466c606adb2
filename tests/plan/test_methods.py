"""What each method adds to a plan: operations, bytes, and the reference pass, counted by hand."""

import json
from itertools import product

import pytest

from gptoss_tune.plan.data_tokens import tokens_in_files
from gptoss_tune.plan.gpus import card
from gptoss_tune.plan.memory import forward_moment, forward_peak, memory, model_saved, moments
from gptoss_tune.plan.methods import METHODS, Added, added
from gptoss_tune.plan.plan import plan
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.recipe import load_recipe

H100 = card("h100-80gb")
HEAD = 2 * 2880 * 201_088
WITH_REFERENCE = ("dpo", "ipo", "kto")


@pytest.fixture
def recipe(tmp_path, sound):
    path = tmp_path / "a.yaml"
    path.write_text(sound)
    return lambda name, *overrides: load_recipe(path, [f"method.name={name}", *overrides])


def rows(path, row, count=50):
    path.write_text((json.dumps(row) + "\n") * count)
    return path


@pytest.mark.parametrize("name", METHODS)
def test_operations_of_a_step(recipe, name):
    """The head once more for every preference; for KTO a forward pass of other answers too."""
    sft, made = plan(recipe("sft"), H100).work, plan(recipe(name), H100).work
    more = {"sft": 0, "grpo": 0, "kto": HEAD + sft.flops.forward}.get(name, HEAD)
    assert made.flops.total == sft.flops.total + more
    assert made.flops.as_json().get("added", 0) == more
    assert made.tokens_per_second == pytest.approx(989e12 * 0.35 / made.flops.total)


@pytest.mark.parametrize(
    ("name", "overrides", "each"),
    [
        ("sft", [], 0),
        # Answer and place in 8 bytes each; the reference, first loss and signed weight in 4.
        ("dpo", [], 28),
        ("ipo", [], 28),
        ("dpo", ["method.reference=none"], 28),
        ("simpo", [], 28),
        ("orpo", [], 28),
        # And of another prompt's answer id, target, position, answer, place; weight, reference,
        # loss.
        ("kto", [], 28 + 5 * 8 + 3 * 4),
    ],
)
def test_bytes_of_a_micro_batch(recipe, name, overrides, each):
    made = plan(recipe(name, *overrides, "train.per_device_train_batch_size=2"), H100).memory
    assert made.kinds.get(name, 0) == each * 2 * 4096


def test_the_reference_goes_over_all_data_once_for_the_run(recipe, tmp_path):
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_bytes(b"x" * 400_000)
    held_out.write_bytes(b"x" * 40_000)
    files = [f"data.train={train}", "train.max_steps=null", "train.num_train_epochs=3"]
    both = [*files, f"data.eval={held_out}"]
    for name, passes in (("dpo", 1), ("ipo", 1), ("kto", 2)):
        made = plan(recipe(name, *both), H100, efficiency=0.5)
        rate = 989e12 * 0.5 / made.work.flops.forward
        assert made.work.tokens == 300_000 and made.reference.tokens == passes * 110_000
        assert made.reference.hours == pytest.approx(passes * 110_000 / rate / 3600)
        kinds = made.as_json()["hours_by_kind"]
        assert made.hours == sum(kinds.values()) and kinds["reference"] == made.reference.hours
        assert list(kinds) == ["training", "evaluation", "reference"]
        four = plan(recipe(name, *both), H100, efficiency=0.5, gpus=4)
        assert four.reference.hours == pytest.approx(made.reference.hours / 4)
        # A number of steps does not say how much data there is; the files do.
        some = plan(recipe(name, f"data.train={train}", both[-1]), H100)
        assert some.reference.tokens == passes * 110_000
    share = ["data.eval_fraction=0.2"]
    assert plan(recipe("dpo", *files, *share), H100).reference.tokens == 100_000
    given = plan(recipe("dpo", *files, *share), H100, epoch_tokens=8_000_000)
    assert given.work.tokens == 24_000_000 and given.reference.tokens == 10_000_000


def test_without_a_reference_there_is_no_pass(recipe):
    for name in METHODS:
        assert (plan(recipe(name), H100).reference is not None) == (name in WITH_REFERENCE)
        assert ("reference" in plan(recipe(name), H100).as_json()) == (name in WITH_REFERENCE)
    for name in ("dpo", "ipo"):
        made = plan(recipe(name, "method.reference=none"), H100)
        assert made.reference is None and "reference" not in made.as_json()["hours_by_kind"]
    started = recipe("dpo", "lora.init_from=runs/b")
    assert added(started.method, started.lora) == METHODS["dpo"] != Added()


def test_a_reference_pass_of_unknown_length_is_planned_and_not_guessed(recipe, tmp_path):
    for overrides in ([], ["train.max_steps=null", "train.num_train_epochs=1"]):
        made = plan(recipe("dpo", "data.train=owner/pairs", *overrides), H100)
        assert made.reference.tokens is None and made.reference.hours is None
        assert made.hours is None and made.as_json()["hours_by_kind"]["reference"] is None
        given = plan(recipe("dpo", "data.train=owner/pairs", *overrides), H100, epoch_tokens=5000)
        assert given.reference.tokens == 5000
    other = plan(recipe("dpo", "data.eval=owner/pairs"), H100, epoch_tokens=5000)
    assert other.reference.hours is None, "the held-out data are not known"


def test_an_evaluation_of_kto_reads_other_answers_too(recipe, tmp_path):
    held_out = tmp_path / "eval.jsonl"
    held_out.write_bytes(b"x" * 4000)
    once = plan(recipe("sft", f"data.eval={held_out}"), H100).evaluation.held_out.seconds
    for name, passes in (("dpo", 1), ("orpo", 1), ("kto", 2)):
        found = plan(recipe(name, f"data.eval={held_out}"), H100).evaluation.held_out
        assert found.seconds == pytest.approx(passes * once)


def test_a_pass_without_gradients_lies_below_a_step(recipe):
    modes = ("none", "selective", "full", "offload")
    targets = (
        "lora.layers=null",
        "lora.layers=[23]",
        "lora.target_parameters=[]",
        "lora.target_modules=[]",
    )
    for mode, target, length, processes in product(modes, targets, (128, 4096, 131_072), (1, 4)):
        made = recipe(
            "kto",
            target,
            f"train.activation_checkpointing={mode}",
            f"data.max_length={length}",
        )
        setup = TrainingSetup(
            plan(made, H100).architecture,
            made.model,
            made.lora,
            made.method,
            made.data,
            made.train,
            processes,
            "ddp" if processes == 1 else "fsdp2",
        )
        kept = model_saved(setup).bytes(setup.tokens)
        assert forward_moment(setup) < kept + moments(setup).peak, (mode, target, length)
        assert memory(setup).resident < forward_peak(setup) < memory(setup).peak


def test_prompts_of_pairs_are_counted_in_both_branches(tmp_path, recipe):
    """Bytes as JSON: 402 of the prompt, 202 and 302 of the answers; a token is four."""
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "q" * 400, "chosen": "a" * 200, "rejected": "b" * 300, "id": "i" * 500}
    sources = recipe("dpo", f"data.train={path}").data.train
    rows(path, row)
    found = tokens_in_files(sources, branches=2)
    assert found.count == pytest.approx(50 * (2 * 402 + 202 + 302) / 4, abs=1)
    assert found.origin == "file bytes / 4, prompts twice"
    once = tokens_in_files(sources)
    assert once.count == path.stat().st_size // 4
    assert once.origin == "file sizes at 4 bytes a token"
    made = plan(recipe("dpo", f"data.train={path}"), H100)
    assert made.reference.tokens == found.count
    assert plan(recipe("kto", f"data.train={path}"), H100).reference.tokens == 2 * once.count


def said(*texts):
    return [{"role": r, "content": t} for r, t in zip(("user", "assistant"), texts, strict=False)]


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        # The prompt stands in both conversations, and in a column of its own beside them.
        ({"prompt": "q" * 99, "chosen": said("q" * 99, "a"), "rejected": said("q" * 99, "b")}, ""),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant:"}, ""),
        ({"prompt": "Q: q", "chosen": "Q: q A: a", "rejected": "Q: q A: b"}, ""),
        ({"prompt": said("q" * 99), "chosen": said("q", "a")[1:], "rejected": "b"}, "prompt"),
        (
            {
                "input": {"messages": said("q" * 99)},
                "preferred_output": said("q", "a")[1:],
                "non_preferred_output": said("q", "b")[1:],
            },
            "input",
        ),
    ],
)
def test_shapes_of_pairs(tmp_path, recipe, row, counted):
    path = rows(tmp_path / "pairs.jsonl", row)
    found = tokens_in_files(recipe("dpo", f"data.train={path}").data.train, branches=2)
    *_, first, second = row.values()
    expected = sum(len(json.dumps(value)) for value in (first, second))
    expected += 2 * len(json.dumps(row[counted])) if counted else 0
    assert found.count == pytest.approx(50 * expected / 4, abs=1)


@pytest.mark.parametrize(
    "text", ["", "[1]\n", '{"a": 1}\n', "{\n", "\xff\n", "[" * 20_000 + "\n", '{"chosen": "a"}\n']
)
def test_rows_that_are_no_pairs_are_counted_as_written(tmp_path, recipe, text):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(text.encode("latin-1"))
    found = tokens_in_files(recipe("dpo", f"data.train={path}").data.train, branches=2)
    assert found.count == len(text) // 4
    assert found.origin == "file bytes / 4, prompts as written"
