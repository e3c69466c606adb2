"""Names, types and bytes of single tensors, against the library gguf."""

import pytest
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
from gguf.quants import dequantize
from gptoss_kernels import dequantize_reference

from gptoss_tune.export.gguf.layout import (
    GgufTensor,
    by_name,
    encode,
    mxfp4_bytes,
    plan_tensors,
    released_blocks,
    rows_of,
)
from gptoss_tune.export.merge.steps import plan_steps
from gptoss_tune.weights import open_checkpoint

MXFP4 = GGMLQuantizationType.MXFP4


def random_stack(*shape):
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 150, shape, dtype=torch.uint8, generator=generator)
    return blocks, scales


def test_blocks_decode_to_the_releases_values():
    blocks, scales = random_stack(3, 10, 2)
    data = mxfp4_bytes(blocks, scales)
    assert data.shape == (3, 10, 34)
    assert torch.equal(data[..., ::17], scales)
    found = torch.from_numpy(dequantize(data.numpy(), MXFP4))
    wanted = dequantize_reference(blocks, scales, dtype=torch.float32)
    assert wanted.unique().numel() > 100
    assert torch.equal(found, wanted)


def test_the_way_back_gives_the_same_bytes():
    blocks, scales = random_stack(2, 4, 3)
    again = released_blocks(mxfp4_bytes(blocks, scales))
    assert torch.equal(again[0], blocks)
    assert torch.equal(again[1], scales)


def test_gate_is_even_and_up_is_odd_in_every_form():
    rows = torch.arange(2 * 6 * 64.0).view(2, 6, 64).bfloat16()
    for name, parts in (
        ("blk.0.ffn_x_exps.weight", (rows.transpose(1, 2),)),  # dense: [E, in, out]
        ("blk.0.ffn_x_exps.bias", (rows[..., 0],)),
    ):
        expected = rows if name.endswith("weight") else rows[..., 0]
        for first, half in ((0, "gate"), (1, "up")):
            kind = "BF16" if name.endswith("weight") else "F32"
            target = GgufTensor(name, (2, 3, 64), kind, half)
            (found,) = rows_of(target, parts)
            assert torch.equal(found, expected[:, first::2])
            dtype = torch.bfloat16 if kind == "BF16" else torch.float32
            assert torch.equal(encode(target, parts).view(dtype).view(found.shape), found.to(dtype))
    blocks, scales = random_stack(2, 6, 2)
    target = GgufTensor("blk.0.ffn_up_exps.weight", (2, 3, 64), "MXFP4", "up")
    values = torch.from_numpy(dequantize(encode(target, (blocks, scales)).numpy(), MXFP4))
    wanted = dequantize_reference(blocks, scales, dtype=torch.float32)[:, 1::2]
    assert torch.equal(values.view(wanted.shape), wanted)


@pytest.mark.parametrize("expert_format", ["mxfp4", "bf16"])
def test_names_are_those_of_the_librarys_map(base, expert_format):
    checkpoint = open_checkpoint(base)
    steps = plan_tensors(plan_steps(checkpoint, [], expert_format))
    names = get_tensor_name_map(MODEL_ARCH.GPT_OSS, checkpoint.config["num_hidden_layers"])
    expected = set()
    for step in steps:
        key = step.step.outputs[0].name.removesuffix("_blocks")
        key = f"{key}.weight" if "sinks" in key else key
        if ".experts." in key:
            stem, part = key.removesuffix("_bias"), "bias" if key.endswith("_bias") else "weight"
            halves = ("gate_proj", "up_proj") if "gate_up" in stem else ("down_proj",)
            stem = stem.rpartition(".")[0]
            keys = [f"{stem}.{half}.{part}" for half in halves]
        else:
            keys = [key]
        expected |= {names.get_name(each, try_suffixes=(".weight", ".bias")) for each in keys}
    assert set(by_name(steps)) == expected
    assert None not in expected
    assert len(expected) == 3 + 19 * checkpoint.config["num_hidden_layers"]


def test_bytes_of_rows_add_up(base):
    for step in plan_tensors(plan_steps(open_checkpoint(base), [], "mxfp4")):
        for tensor in step.tensors:
            assert tensor.row_nbytes * tensor.shape[0] == tensor.nbytes
            values = torch.tensor(tensor.shape).prod().item()
            assert tensor.nbytes == {"MXFP4": 17 / 32, "BF16": 2, "F32": 4}[tensor.type] * values
