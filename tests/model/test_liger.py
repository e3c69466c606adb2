"""Liger's kernels against float64, transformers' modules, and what their compiled code rounds.

Without a GPU they run in Triton's interpreter, in fp32. It has neither libdevice's ``rsqrt`` nor
methods on scalars, so those two are stood in for; the kernels are Liger's.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from gptoss_kernels.rms_norm import rms_norm_reference
from gptoss_kernels.testing import assert_close
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm, apply_rotary_pos_emb

from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.build import build
from gptoss_tune.model.liger import find_fault, liger_obstacle, liger_rms_norm, liger_rotate
from gptoss_tune.model.norms import (
    LigerRotaryAttention,
    RmsNorm,
    RowKernelChoice,
    choose_row_kernels,
    set_norms,
)
from gptoss_tune.recipe import Recipe

liger_norm_file = pytest.importorskip("liger_kernel.ops.rms_norm")
EPS = 1e-5
FP32 = 1e-6  # measured <= 2e-7
STEP = 1e-4  # a whole step in fp32; measured <= 1.2e-5
BF16 = 2.0**-8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Scalar(float):
    """A kernel's scalar argument as the compiler sees it."""

    def to(self, dtype):
        return self


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)


@pytest.fixture(autouse=True)
def interpretable(monkeypatch, device):
    if DEVICE.type == "cuda":
        return

    def scalars(function):
        return lambda *arguments, **named: function(
            *(Scalar(x) if type(x) is float else x for x in arguments), **named
        )

    monkeypatch.setattr(liger_norm_file, "rsqrt", rsqrt)
    for name in ("rms_norm_forward", "rms_norm_backward"):
        monkeypatch.setattr(liger_norm_file, name, scalars(getattr(liger_norm_file, name)))


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def differentiated(function, inputs, grads):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = torch.autograd.grad(outputs, leaves, [grad.clone() for grad in grads])
    return [*(output.detach() for output in outputs), *found]


def angles(batch, length, half, dtype):
    positions = torch.arange(batch * length, dtype=torch.float64).view(batch, length, 1)
    angle = positions * 0.7 ** torch.arange(half, dtype=torch.float64)
    # As YaRN does for gpt-oss: both scaled by the same factor.
    return [(1.3466 * f(angle)).to(dtype).to(DEVICE) for f in (torch.cos, torch.sin)]


@pytest.mark.triton
@pytest.mark.parametrize("shape", [(1, 24), (2, 7, 33), (5, 64)], ids=str)
def test_norm_equals_float64_autograd(shape):
    hidden, grad = 3 * draw(*shape), draw(*shape, seed=1)
    weight = draw(shape[-1], seed=2).abs() + 0.5
    truth = differentiated(
        lambda x, w: rms_norm_reference(x, w, EPS), [hidden.double(), weight.double()], [grad]
    )
    found = differentiated(lambda x, w: liger_rms_norm(x, w, EPS), [hidden, weight], [grad])
    for name, got, expected in zip(("output", "d_hidden", "d_weight"), found, truth, strict=True):
        assert_close(name, got, expected, FP32)
    module = GptOssRMSNorm(shape[-1], eps=EPS).to(DEVICE)
    module.weight.data = weight
    for got, expected in zip(found[:2], differentiated(module, [hidden], [grad]), strict=True):
        assert_close("beside transformers' module", got, expected, FP32)


@pytest.mark.triton
def test_a_frozen_weight_costs_no_gradient_and_nobody_elses_gradient_is_overwritten(monkeypatch):
    asked = []
    backward = liger_norm_file.rms_norm_backward
    monkeypatch.setattr(
        liger_norm_file,
        "rms_norm_backward",
        lambda *a, needs_dw: asked.append(needs_dw) or backward(*a, needs_dw=needs_dw),
    )
    forward, modes = liger_norm_file.rms_norm_forward, []
    monkeypatch.setattr(
        liger_norm_file, "rms_norm_forward", lambda *a: modes.append(a[3:5]) or forward(*a)
    )
    hidden, grad, weight = draw(4, 8).requires_grad_(), draw(4, 8, seed=1), draw(8, seed=2)
    kept = grad.clone()
    liger_rms_norm(hidden, weight, EPS).backward(grad)
    assert hidden.grad is not None and weight.grad is None
    assert asked == [False]
    # In fp32 every casting mode gives the same; in bf16 only this one is gpt-oss's.
    assert modes == [(0.0, "gemma")]
    assert torch.equal(grad, kept)


@pytest.mark.triton
def test_as_much_is_kept_for_backward_as_by_the_torch_norm():
    hidden, weight = draw(16, 32), draw(32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        liger_rms_norm(hidden.requires_grad_(), weight, EPS)
    assert sum(x.nbytes for x in saved) == hidden.nbytes + weight.nbytes + 16 * 4


@pytest.mark.triton
@pytest.mark.parametrize("tables", [1, 3], ids=["one table", "a table for each row"])
def test_rotation_equals_transformers_bit_by_bit_and_float64(tables):
    inputs = [draw(3, 11, heads, 16, seed=heads).transpose(1, 2) for heads in (4, 2)]
    grads = [draw(3, heads, 11, 16, seed=heads + 5) for heads in (4, 2)]
    table = angles(tables, 11, 8, torch.float32)
    found = differentiated(lambda q, k: liger_rotate(q.clone(), k.clone(), *table), inputs, grads)
    usual = differentiated(lambda q, k: apply_rotary_pos_emb(q, k, *table), inputs, grads)
    exact = differentiated(
        lambda q, k: apply_rotary_pos_emb(q, k, *(t.double() for t in table)),
        [t.double() for t in inputs],
        grads,
    )
    for got, expected, truth in zip(found, usual, exact, strict=True):
        assert_close("rotated", got, truth, FP32)
        if DEVICE.type == "cpu":  # compiled, a product and the sum behind it round once
            assert torch.equal(got, expected)


PTX = """
import re
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from liger_kernel.ops.rms_norm import _rms_norm_forward_kernel as norm
from liger_kernel.ops.rope import _triton_rope as rope

heads = dict(n_qh=64, n_kh=8, pad_n_qh=64, pad_n_kh=8, BLOCK_SIZE=64)
sizes = dict(bs=1, cos_bs=1, hd=64, pad_hd=64, pad_rd=64, rd=64, **heads)
settings = [(rope, {**sizes, "BACKWARD_PASS": back}, 4) for back in (False, True)]
gemma = dict(casting_mode=1, elementwise_affine=True, BLOCK_SIZE=4096)
for kernel, constants, warps in [*settings, (norm, gemma, 8)]:
    scalars = {"RSTD_ptr": "*fp32", "eps": "fp32", "offset": "fp32"}
    types = {
        name: "constexpr" if name in constants else scalars.get(
            name, "*bf16" if name.endswith("_ptr") or name in ("cos", "sin") else "i32"
        )
        for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    arithmetic = r"^\\s+((?:mul|add|sub|fma|cvt\\.rn)\\.[\\w.]*(?:bf16|f32)\\S*)"
    print(*sorted(set(re.findall(arithmetic, made.asm["ptx"], re.M))))
"""


@pytest.mark.slow
def test_compiled_in_bf16_they_round_as_said():
    """Rotation: one product rounded, the other fused with the sum. Norm: fp32 until the end."""
    done = subprocess.run(
        [sys.executable, "-c", PTX],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    forward, backward, norm = done.stdout.splitlines() or [done.stderr, "", ""]
    assert forward.split() == backward.split() == ["fma.rn.bf16", "mul.bf16"], forward
    assert {op for op in norm.split() if "bf16" in op} == {"cvt.rn.bf16.f32"}, norm


def test_that_rounding_is_closer_to_the_truth_than_torch():
    """What the instructions of the test above compute, beside transformers' rotation in bf16."""
    (x, y), table = draw(2, 1, 4, 512, 32, dtype=torch.bfloat16), angles(1, 512, 32, torch.bfloat16)
    cos, sin = (t.unsqueeze(1) for t in table)
    usual, _ = apply_rotary_pos_emb(torch.cat((x, y), -1), torch.cat((x, y), -1), *table)
    exact = [t.double() for t in (x, y, cos, sin)]
    truth = exact[0] * exact[2] - exact[1] * exact[3]
    fused = (exact[0] * exact[2] - (y * sin).double()).bfloat16()

    def error(found):
        return float((found.double() - truth).norm() / truth.norm())

    assert error(fused) < 0.9 * error(usual[..., :32])
    assert error(usual[..., :32]) < BF16


@pytest.mark.triton
def test_the_proof_lets_the_real_ones_pass_and_sees_wrong_ones():
    dtype = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
    assert find_fault(liger_rms_norm, liger_rotate, DEVICE, dtype) is None

    def llama(x, weight, eps):
        return weight * rms_norm_reference(x, torch.ones_like(weight), eps)

    fault = find_fault(llama, apply_rotary_pos_emb, DEVICE, torch.bfloat16)
    assert fault is not None and fault.startswith("Liger's RMSNorm (")

    def of_pairs(q, k, cos, sin):
        """The other convention: neighbours are rotated, not halves."""
        order = torch.arange(64).view(2, 32).T.flatten().to(DEVICE)
        turned = apply_rotary_pos_emb(q[..., order], k[..., order], cos, sin)
        return tuple(t[..., order.argsort()] for t in turned)

    fault = find_fault(liger_rms_norm, of_pairs, DEVICE, dtype)
    assert fault is not None and "rotary embedding" in fault

    def old(q, k, cos, sin):
        raise TypeError("forward() takes 7 arguments")

    fault = find_fault(liger_rms_norm, old, DEVICE, dtype)
    assert fault == "Liger's rotary embedding raised TypeError: forward() takes 7 arguments"


@pytest.mark.triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels need the model on the GPU")
def test_a_step_through_the_model_with_the_attention_subclass(small_model, randomise_adapters):
    model = small_model().to(DEVICE)
    randomise_adapters(model)
    set_attention(model)
    set_norms(model)
    tokens = draw(2, 17).mul(30).long().abs() % 97
    names = set(model.state_dict())

    def step():
        model.zero_grad()
        logits = model(tokens).logits
        logits.float().square().mean().backward()
        return {"logits": logits.detach()} | {
            name: p.grad for name, p in model.named_parameters() if p.requires_grad
        }

    expected = step()
    assert set_norms(model, "liger") == 5, "a second call changes them"
    set_attention(model)
    assert sum(isinstance(m, LigerRotaryAttention) for m in model.modules()) == 2
    assert {m.kernels for m in model.modules() if isinstance(m, RmsNorm)} == {"liger"}
    assert set(model.state_dict()) == names
    for name, value in step().items():
        assert_close(name, value, expected[name], STEP)
    set_norms(model)
    assert not any(isinstance(m, LigerRotaryAttention) for m in model.modules())
    assert all(torch.equal(value, expected[name]) for name, value in step().items())


@pytest.mark.triton
def test_generation_with_a_cache(small_model):
    model = small_model(adapted=False).to(DEVICE).eval()
    set_attention(model)
    prompt = torch.arange(5)[None].to(DEVICE)
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 96,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    plain = model.generate(prompt, **settings)
    set_norms(model, "liger")
    fused = model.generate(prompt, **settings)
    compared = 0
    for expected, found in zip(plain.logits, fused.logits, strict=True):
        assert_close(f"logits of token {compared}", found, expected, STEP)
        compared += 1
        # Random weights leave two tokens as good as tied, and from there on the answers differ.
        if not torch.equal(plain.sequences[:, : 5 + compared], fused.sequences[:, : 5 + compared]):
            break
    assert compared >= 3  # the first is the prompt's, without a cache


def test_who_computes_is_said():
    choice = choose_row_kernels("torch", DEVICE, torch.float32)
    assert (choice.kernels, choice.reason, choice.warning) == ("torch", "torch", None)
    choice = choose_row_kernels("triton", torch.device("cpu"), torch.float32)
    assert choice.reason == "torch, because Liger's kernels need a GPU, the model is on cpu"
    assert choice.kernels == "torch" and choice.warning is None, "a CPU has no faster ones"


def test_a_gpu_without_liger_is_warned_of_with_reason_price_and_advice(monkeypatch):
    cuda = torch.device("cuda")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "liger_kernel" else find_spec(name, *rest),
    )
    choice = choose_row_kernels("triton", cuda, torch.bfloat16)
    assert choice.kernels == "torch"
    assert "because the package liger-kernel is not installed" in choice.warning
    assert "about 70 ms a step" in choice.warning and "not measured" in choice.warning
    assert "pip install -U liger-kernel" in choice.warning
    # Who asked for torch by name has chosen, and is not warned.
    assert choose_row_kernels("torch", cuda, torch.bfloat16).warning is None


def test_the_warning_is_a_note_of_the_built_model(mxfp4_base, opened, monkeypatch, tmp_path):
    told = RowKernelChoice("torch", "torch, because X", "warning: X costs Y")
    monkeypatch.setattr("gptoss_tune.model.build.choose_row_kernels", lambda *a: told)
    recipe = Recipe.model_validate(
        {
            "model": {"name_or_path": str(mxfp4_base), "dtype": "float32"},
            "data": {"train": "rows.jsonl"},
            "train": {"output_dir": str(tmp_path), "max_steps": 1},
        }
    )
    notes = build(recipe, opened, "cpu").notes
    assert notes.count("warning: X costs Y") == 1
    assert any("norms and rotation: torch, because X;" in note for note in notes)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_real_sizes_on_a_gpu(dtype):
    """The proof, and 4,096 rows of 2,880 against transformers' module, bit by bit but for sums."""
    assert liger_obstacle(DEVICE, dtype) is None
    hidden, grad = 3 * draw(1, 4096, 2880, dtype=dtype), draw(1, 4096, 2880, dtype=dtype, seed=1)
    module = GptOssRMSNorm(2880, eps=EPS).to(DEVICE, dtype)
    module.weight.data = draw(2880, dtype=dtype, seed=2)
    module.weight.requires_grad_(False)
    expected = differentiated(module, [hidden], [grad])
    found = differentiated(lambda x: liger_rms_norm(x, module.weight, EPS), [hidden], [grad])
    for got, truth in zip(found, expected, strict=True):
        # Another order of the sum moves a few values to the neighbour in bf16.
        assert float((got != truth).double().mean()) < (0.02 if dtype == torch.bfloat16 else 1)
        assert_close("norm", got, truth, BF16 if dtype == torch.bfloat16 else FP32)
