"""Two gloo ranks sample what one does, wrapped and spread; a GPU says what the CPU says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss_tune.model.build import build
from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.batched.sampler import BatchedSampler
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.weights import open_checkpoint

TEMPERATURE = 0.3
pytestmark = pytest.mark.usefixtures("planner")


def trained(model, request, found, temperature=1.0):
    ids = torch.tensor([[*request.prompt, *found.token_ids]], device=model.device)
    weights = torch.zeros(ids.shape, device=model.device)
    weights[0, len(request.prompt) - 1 : -1] = 1
    choices = torch.from_numpy(np.concatenate((found.choices, found.choices[-1:])))[None]
    out = model(
        ids,
        shift_labels=ids.roll(-1, 1),
        loss_weights=weights,
        choices=choices.to(model.device),
        temperature=temperature,
        use_cache=False,
    )
    return -out.token_losses[0, len(request.prompt) - 1 : -1].detach().cpu().numpy()


@pytest.mark.slow
def test_two_ranks_sample_what_one_does(tuned, recipe_of, requests_of, forked_python, tmp_path):
    tuned.save_pretrained(str(tmp_path / "start"), save_embedding_layers=False)
    requests = requests_of(max_new_tokens=4)[:3]
    written = [[r.prompt, r.max_new_tokens, r.seed] for r in requests]
    (tmp_path / "requests.json").write_text(json.dumps(written))
    recipe = recipe_of(
        f"lora.init_from={tmp_path / 'start'}", "train.activation_checkpointing=full"
    )
    script = Path(__file__).with_name("sample_on_ranks.py")
    files = (recipe, tmp_path / "requests.json", tmp_path / "found.json")
    ended = forked_python([script, *files], ranks=2)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    alone = OwnSampler(tuned, batch=2).sample(requests, 1.0)
    loss = -trained(tuned, requests[0], alone[0]).sum()
    for name in ("ddp", "fsdp2"):
        assert [tuple(ids) for ids in found[name]["tokens"]] == [one.token_ids for one in alone]
        for one, logps in zip(alone, found[name]["logps"], strict=True):
            assert np.allclose(one.logps, logps, atol=1e-5)
        assert found[name]["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["stopped"] and "fsdp2" in found["refused"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_samplers_on_a_gpu(tuned, recipe_of, base, requests_of, tmp_path, dtype):
    """fp32 says what the CPU says; bf16 agrees with its own training forward, replayed.

    At 0.3 a few words of 201,088 hold most of the probability: a draw among nearly equal ones may
    fall to a neighbour by the rounding of another device.
    """
    tuned.save_pretrained(str(tmp_path / "start"), save_embedding_layers=False)
    overrides = (f"lora.init_from={tmp_path / 'start'}", f"model.dtype={dtype}")
    there = build(load_recipe(recipe_of(), overrides), open_checkpoint(str(base)), "cuda").model
    there.train()
    requests = requests_of(max_new_tokens=24)
    held = torch.cuda.memory_allocated()
    for sampler in (OwnSampler(there, batch=4), BatchedSampler(there, batch=4)):
        found = sampler.sample(requests, TEMPERATURE)
        if dtype == "float32":
            expected = OwnSampler(tuned, batch=4).sample(requests, TEMPERATURE)
            assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        narrow = dtype == "bfloat16"
        for request, one in zip(requests, found, strict=True):
            with torch.autocast("cuda", torch.bfloat16, enabled=narrow):
                apart = np.abs(trained(there, request, one, TEMPERATURE) - one.logps)
            assert apart.mean() < (0.05 if narrow else 1e-4)
        del found
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - held < 2**26, "the caches are given back"
