"""Evaluations inside a run: they write what they find and change nothing of the training."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.train.run import train


@pytest.fixture
def asked(tmp_path, rows):
    """Overrides that evaluate everything, with answers of a few tokens."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "Capital of France?", "answer": "Paris"},
        {"prompt": "2 + 2?", "pattern": "4", "reasoning_effort": "high"},
        {"prompt": "Tell me <b>something</b>."},
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return [
        f"evaluation.prompts={prompts}",
        "evaluation.max_new_tokens=3",
        "evaluation.batch_size=2",
        "evaluation.eval_steps=2",
        f"evaluation.drift.references={rows}",
        "evaluation.drift.max_references=2",
        f"evaluation.drift.probes={prompts}",
        "evaluation.drift.max_probes=2",
        "evaluation.drift.reasoning=true",
    ]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.slow
def test_losses_and_adapter_are_bit_for_bit_those_without(recipe, asked, losses, tmp_path):
    plain, evaluated = tmp_path / "plain", tmp_path / "evaluated"
    common = ["train.activation_checkpointing=full", "guard.check_steps=3", "train.max_steps=4"]
    train(recipe(f"train.output_dir={plain}", *common))
    expected_states = states()
    train(recipe(f"train.output_dir={evaluated}", *common, *asked))
    assert states() == expected_states
    assert losses(evaluated) == losses(plain) and len(losses(plain)) == 4
    theirs = load_file(plain / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(evaluated / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, theirs[name]), name
    entropies = [
        [row["router_entropy"] for row in metrics(run) if "loss" in row]
        for run in (plain, evaluated)
    ]
    assert entropies[0] == entropies[1]
    files = sorted(path.name for path in (evaluated / "evaluation").iterdir())
    assert files == ["step-0.json", "step-2.json", "step-4.json"]
    # The last one comes when the adapter is safe, also where eval_steps would have it before.
    saved = (evaluated / "adapter" / "manifest.json").stat().st_mtime_ns
    written = [(evaluated / "evaluation" / name).stat().st_mtime_ns for name in files]
    assert written[1] < saved <= written[2]
    reports = [json.loads((evaluated / "evaluation" / name).read_text()) for name in files]
    assert [report["step"] for report in reports] == [0, 2, 4]
    first, _, last = reports
    assert first["drift"]["kl"] == 0.0 < last["drift"]["kl"]
    assert [s["effort"] for s in last["samples"]] == ["medium", "high", "medium"]
    assert last["graded"]["total"] == 2 and last["health"]["total"] == 3
    assert [s["grade"] and s["grade"]["kind"] for s in last["samples"]] == [
        "exact",
        "pattern",
        None,
    ]
    assert all(s["ended"] == "length" and s["tokens"] == 3 for s in last["samples"])
    assert set(last["drift"]["reasoning_tokens_by_effort"]) == {"medium", "high"}
    logged = [row for row in metrics(evaluated) if "eval_health" in row]
    assert [row["step"] for row in logged] == [0, 2, 4]
    assert logged[0]["eval_kl"] == 0.0 and logged[2]["eval_kl"] == last["drift"]["kl"]
    assert {"eval_graded", "eval_refusal_rate", "eval_answer_tokens"} <= set(logged[2])
    record = json.loads((evaluated / "run.json").read_text())
    assert record["evaluation"]["step"] == 4


def test_bad_prompts_stop_the_run_before_it_starts(recipe, tmp_path):
    prompts = tmp_path / "bad.jsonl"
    prompts.write_text('{"prompt": "a", "pattern": "("}\n{"question": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        train(recipe(f"evaluation.prompts={prompts}"))
    assert "bad.jsonl:1: " in str(caught.value) and "bad.jsonl:2: " in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_held_out_losses_by_channel_are_those_of_plain_logits_in_float64(
    recipe, rows, base, tmp_path
):
    """Each channel's mean over its own tokens, weights aside; the whole's over all weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Mxfp4Config

    settings = recipe(
        f"data.eval={rows}", "data.channel_weights.analysis=0.25", "train.max_steps=2"
    )
    train(settings)
    (last,) = [row for row in metrics(tmp_path / "run") if "eval_loss" in row]
    plain = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32
    ).float()
    model = PeftModel.from_pretrained(plain, str(tmp_path / "run" / "adapter"))
    sums, counts, weighted = torch.zeros(4).double(), torch.zeros(4).double(), torch.zeros(2)
    weighted = weighted.double()
    for row in load_dataset(settings.data, split="eval", vocabulary=load_vocabulary(base)):
        ids, weights = torch.tensor(row["input_ids"]), torch.tensor(row["loss_weights"])[1:]
        channels = torch.tensor(row["channels"], dtype=torch.int64)[1:]
        with torch.no_grad():
            log_p = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        each = -log_p.gather(1, ids[1:, None])[:, 0]
        trained = (weights != 0).double()
        sums.index_add_(0, channels, each * trained)
        counts.index_add_(0, channels, trained)
        weighted += torch.stack(((each * weights).sum(), weights.double().sum()))
    for number, name in ((1, "analysis"), (3, "final")):
        expected = float(sums[number] / counts[number])
        assert last[f"eval_loss_{name}"] == pytest.approx(expected, rel=1e-5)
    assert last["eval_loss"] == pytest.approx(float(weighted[0] / weighted[1]), rel=1e-5)
    assert "eval_loss_commentary" not in last
    assert last["eval_trained_tokens"] == counts.sum()
