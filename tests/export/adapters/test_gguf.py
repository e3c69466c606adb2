"""DoRA and saved modules in a GGUF: the values of the same merge in safetensors."""

import pytest
import torch

gguf = pytest.importorskip("gguf")
NAMES = {
    "output.weight": "lm_head.weight",
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.1.ffn_gate_inp.weight": "model.layers.1.mlp.router.weight",
}


@pytest.mark.slow
def test_a_gguf_holds_what_the_folder_does(foreign, base, lab, tmp_path):
    adapter = foreign.by_peft(
        tmp_path / "adapter",
        target_modules=["q_proj", "o_proj"],
        use_dora=True,
        modules_to_save=["lm_head", "norm", "router"],
        trainable_token_indices=[200012, 3],
    )
    merged, _ = foreign.merged(adapter, tmp_path / "folder", "--no-verify")
    source, out = ("merge", adapter, "--base", base), tmp_path / "gguf"
    done = foreign.run(*source, "--format", "gguf-bf16", "--out", out)  # verified by the command
    assert done.exit_code == 0, (done.output, done.exception)
    (file,) = out.glob("*.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    stored = lab.weights(base)
    for name, released in NAMES.items():
        tensor, wanted = tensors[name], merged[released]
        data = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
            data = data.view(torch.bfloat16)
        found = data.reshape(wanted.shape).float()
        assert torch.equal(found, wanted.float()), name
        assert not torch.equal(wanted, stored[released]), f"{released} is changed at all"
