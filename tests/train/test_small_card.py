"""The recipe for a card of 12 GB on a tiny base: it learns, goes on, is asked and merged."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.evaluate.load import load_answering_model, load_evaluated_model
from gptoss_tune.evaluate.load import open_evaluated_model as open_model
from gptoss_tune.evaluate.trained_as import answering_section
from gptoss_tune.model.packed.layers import HostLinear, Int8Linear
from gptoss_tune.recipe import load_recipe
from gptoss_tune.shipped import shipped
from gptoss_tune.train.run import train

FACTORS = "adapter/adapter_model.safetensors"
STEPS = 6


@pytest.fixture(scope="module")
def recipe(base, rows):
    """Return the shipped recipe, laid on the tiny base and a few rows; further settings follow."""
    pytest.importorskip("bitsandbytes")

    def load(folder, *settings):
        ours = [
            f"model.name_or_path={base}",
            f"data.train={rows}",
            f"data.eval={rows}",
            "data.max_length=256",
            "train.num_train_epochs=null",
            f"train.max_steps={STEPS}",
            "train.gradient_accumulation_steps=1",
            "train.learning_rate=5e-3",
            "train.optim=adamw_8bit",  # paged state needs a GPU
            "train.eval_steps=3",
            "train.save_steps=2",
            f"train.output_dir={folder}",
        ]
        return load_recipe(shipped("recipes") / "gpt-oss-20b/qlora-12gb.yaml", [*ours, *settings])

    return load


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small-card") / "run"
    train(recipe(folder))
    return folder


def losses(folder, key="loss"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def test_it_learns_and_says_what_it_holds(run):
    found = losses(run)
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1] - 0.5
    assert losses(run, "eval_loss")[STEPS] < losses(run, "eval_loss")[3]
    recipe = load_recipe(run / "recipe.yaml").model
    assert (recipe.linear_precision, recipe.head, recipe.embeddings) == ("int8", "cpu", "cpu")


def continued(recipe, whole, folder, *settings):
    """Train on from the checkpoint of step 4 of ``whole``, copied to ``folder``."""
    shutil.copytree(whole, folder)
    for name in ("adapter", f"checkpoint-{STEPS}"):
        shutil.rmtree(folder / name)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    train(recipe(folder, *settings))


def test_it_continues_bit_for_bit(recipe, run, tmp_path):
    continued(recipe, run, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(run)
    expected = load_file(run / FACTORS)
    for name, tensor in load_file(tmp_path / "parts" / FACTORS).items():
        assert torch.equal(tensor, expected[name]), name


def test_another_precision_is_a_change_that_is_refused(recipe, run, tmp_path):
    from gptoss_tune.errors import RecipeError

    with pytest.raises(RecipeError, match=r"model.head_precision: bf16 there, int8 here"):
        continued(recipe, run, tmp_path / "parts", "model.head_precision=int8")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["gpu", "cpu"])
def test_nf4_or_a_head_in_int8_trains_and_continues_too(recipe, tmp_path, place):
    settings = ["model.linear_precision=nf4", "model.head_precision=nf4", "model.head=gpu"]
    if place == "cpu":
        settings = ["model.head_precision=int8"]
    train(recipe(tmp_path / "whole", *settings))
    found = losses(tmp_path / "whole")
    assert found[STEPS] < found[1] - 0.5
    continued(recipe, tmp_path / "whole", tmp_path / "parts", *settings)
    assert losses(tmp_path / "parts") == found


def test_it_is_asked_as_it_was_trained(run, base):
    subject = open_model(str(run), base=str(base))
    section = answering_section(subject)
    assert (section.linear_precision, section.head, section.embeddings) == ("int8", "cpu", "cpu")
    ids = torch.arange(20)[None] + 500
    logits = []
    for load in (load_evaluated_model, load_answering_model):
        model = load(subject, section, torch.device("cpu"))
        assert any(isinstance(layer, Int8Linear) for layer in model.modules())
        assert any(isinstance(layer, HostLinear) for layer in model.modules())
        with torch.no_grad():
            logits.append(model(ids).logits.float())
    assert (logits[0] - logits[1]).norm() < 0.02 * logits[0].norm()
    exact = load_evaluated_model(
        subject,
        section.model_copy(update={"linear_precision": "bf16", "head": "gpu"}),
        torch.device("cpu"),
    )
    with torch.no_grad():
        off = (exact(ids).logits.float() - logits[0]).norm() / logits[0].norm()
    assert 0 < off < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bf16", "mxfp4"])
def test_what_is_merged_are_the_released_bytes_and_the_adapters(run, base, tmp_path, form):
    out = tmp_path / "merged"
    words = ["merge", str(run), "--format", form, "--out", str(out), "--base", str(base)]
    words += [] if form == "bf16" else ["--min-survival", "0"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    before, after = load_file(base / "model.safetensors"), {}
    for part in sorted(out.glob("*.safetensors")):
        after |= load_file(part)
    factors = load_file(run / FACTORS)
    scaling = 16 / 8
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(before[name], after[name]), name
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        name = f"model.layers.1.self_attn.{projection}"
        A, B = (factors[f"base_model.model.{name}.lora_{one}.weight"].double() for one in "AB")
        assert B.norm() > 0
        expected = before[f"{name}.weight"].double() + scaling * B @ A
        error = (after[f"{name}.weight"].double() - expected).norm() / expected.norm()
        assert error < 2**-8, "one rounding to bf16; int8's own would be 2 to 4 times as much"
