"""What PEFT can train on gpt-oss beside plain factors, against PEFT's own merge in fp32."""

import peft
import pytest
import torch
from safetensors.torch import save_file

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.export.verify.layerwise import LayerwiseModel
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS = {
    "DoRA": {"target_modules": [*ATTENTION, "lm_head"], "use_dora": True},
    "DoRA with rsLoRA": {
        "target_modules": ATTENTION,
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 3},
    },
    "saved head, norms and router": {"modules_to_save": ["lm_head", "norm", "router"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"], "target_parameters": STACKS},
    "token rows": {"trainable_token_indices": {"embed_tokens": [200012, 3], "lm_head": [7]}},
    "bias on B": {"target_modules": ["q_proj", "o_proj"], "lora_bias": True},
    "router's weight": {"target_parameters": ["mlp.router.weight"], "r": 2},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "orthogonal start": {"init_lora_weights": "orthogonal", "target_modules": ATTENTION},
}
QUICK = ("DoRA", "saved head, norms and router")
PROMPTS = [[200006, 1428, 200008, 3, 7, 42, 200007, 200012]]


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=[pytest.mark.slow] * (k not in QUICK)) for k in KINDS],
)
def kind(request, foreign, lab, tmp_path_factory):
    """An adapter of one kind, what PEFT merges of it, and our merge."""
    folder = tmp_path_factory.mktemp("kind")
    adapter = foreign.by_peft(folder / "adapter", **KINDS[request.param])
    merged, said = foreign.merged(adapter, folder / "out")
    return request.param, adapter, folder / "out", merged, said


@pytest.mark.slow
def test_a_merge_is_pefts_own_rounded_once_and_is_verified(kind, foreign, lab, base):
    _, adapter, _, merged, said = kind
    foreign.assert_rounded(merged, lab.merged_by_peft(base, adapter))
    assert "changes" in said.output or "verified" in said.output, said.output


def test_base_and_adapter_have_pefts_logits(kind, lab, base):
    adapter = kind[1]
    model = peft.PeftModel.from_pretrained(lab.plain_model(base, torch.float32), adapter).eval()
    checkpoint = open_checkpoint(base)
    ours = LayerwiseModel(checkpoint, [WeightedAdapter(open_adapter(adapter, checkpoint))])
    with torch.no_grad():
        expected = model(torch.tensor(PROMPTS)).logits[0]
    bare = LayerwiseModel(checkpoint).logits(PROMPTS)[0]
    got = ours.logits(PROMPTS)[0]
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (got - bare).abs().max() > 1e-2 * (bare.abs().max()), "the adapter does something"


@pytest.mark.slow
def test_a_wrong_value_in_the_merged_file_is_seen(kind, foreign, lab, base, tmp_path):
    """One value of each tensor that the kind changes beside plain factors."""
    name, adapter, out, merged, _ = kind
    checkpoint = open_checkpoint(base)
    opened = open_adapter(adapter, checkpoint)
    tensors = [f"{m}.weight" for m, t in opened.targets.items() if t.dora or not t.experts]
    for tensor in [*tensors[:1], *list(opened.whole)[:2]]:
        damaged = {n: t.clone() for n, t in merged.items()}
        damaged[tensor].view(-1)[5] += 0.5
        folder = tmp_path / tensor
        folder.mkdir()
        for file in out.iterdir():
            if file.suffix != ".safetensors" and file.name != "manifest.json":
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
        result = foreign.run("verify", folder, "--adapter", adapter, "--base", base, "--no-logits")
        assert result.exception is not None, (name, tensor)
        assert tensor.removesuffix(".weight") in str(result.exception), (name, result.output)


def test_mxfp4_keeps_what_is_no_expert(foreign, tmp_path):
    adapter = foreign.by_peft(tmp_path / "adapter", **KINDS["saved embedding"])
    dense, _ = foreign.merged(adapter, tmp_path / "dense", "--no-verify")
    packed, _ = foreign.merged(adapter, tmp_path / "out", "--format", "mxfp4", "--accept-loss")
    same = [n for n in packed if ".experts." not in n]
    assert "model.embed_tokens.weight" in same
    assert all(torch.equal(packed[n], dense[n]) for n in same)


@pytest.mark.slow
def test_peft_reads_the_copy_and_computes_the_same(kind, foreign, lab, base, tmp_path):
    name, adapter, _, _, _ = kind
    for number, options in enumerate(([], ["--uniform"])):
        copy = tmp_path / f"copy{number}"
        done = foreign.run("adapter", adapter, "--base", base, "--out", copy, *options)
        assert done.exit_code == 0, (done.output, done.exception)
        got, expected = lab.merged_by_peft(base, copy), lab.merged_by_peft(base, adapter)
        for tensor in expected:
            assert torch.allclose(got[tensor], expected[tensor], atol=1e-5), (name, tensor, options)


REFUSED = {
    "DoRA": "DoRA, which vLLM refuses",
    "DoRA with rsLoRA": "DoRA, which vLLM refuses",
    "saved embedding": "vLLM refuses modules_to_save",
    "saved head, norms and router": "vLLM refuses modules_to_save",
    "token rows": r"vLLM reads no single rows \(trainable_token_indices\)",
    "bias on B": "lora_bias.*vLLM refuses",
    "router's weight": "router, which vLLM does not adapt",
    "embedding and head": "embed_tokens, which vLLM does not adapt",
}


def test_vllm_is_not_handed_what_it_refuses_and_a_merge_is_named(kind, foreign, base, tmp_path):
    name, adapter, _, _, _ = kind
    arguments = ("--base", base, "--out", tmp_path / "out", "--for", "vllm")
    result = foreign.run("adapter", adapter, *arguments)
    if name in REFUSED:
        with pytest.raises(CheckpointError, match=rf"{REFUSED[name]}.*gptoss-tune merge"):
            raise result.exception
    else:
        assert result.exit_code == 0, result.output
