"""QuACK's grouped product as an engine on Hopper: bias, rank-r term and activation in its epilogue.

QuACK (``quack-kernels``, Apache-2.0, on NVIDIA's CuTe-DSL) copies by TMA in warps of their own,
gathers rows and lets a caller write the epilogue. Ours is the forward of the layer: the accumulator
plus bias plus ``scaling`` times the rank-r product, which our kernel has put where the result goes,
then the clamped SwiGLU of gpt-oss. So Z is rounded once, and no pass reads it again.

Not taken: its fused gradient of the activation (``dgated``). It holds Z in the slot of the rank-r
term and has no other full tile when row counts vary, so ``s dYB A_d`` cannot enter before the
activation's slope; that product is stored and our kernel follows, as with the other engines. Nor
``gemm_act``, whose ``swiglu_oai`` has no clamp; nor its product with four-bit weights, which has no
experts; nor its tuner, which times kernels inside somebody's first step.

Every form of the product is a kernel of its own, compiled for about 15 s at its first use and kept
on disk by QuACK. Each is proved against float64 on the device before a layer takes it.
"""

# Legend: T tokens, M rows, E experts, N columns out, K columns in.

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptoss_kernels.backend import REFUSALS, say_once
from gptoss_kernels.experts.decode import expert_groups
from gptoss_kernels.experts.grouped_proof import TOLERANCE, Problem, problems
from gptoss_kernels.experts.projection import ExpertMatrices
from gptoss_kernels.lora import LowRankTerm
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.swiglu import swiglu_reference
from gptoss_kernels.tiles import choose_tiles, gpu_of

PACKAGE = "quack-kernels"
OLDEST, TOO_NEW = (0, 6, 5), (0, 7)
"""Versions whose interface this was written against."""
CAPABILITY = (9, 0)

_ALPHA, _LIMIT = 1.702, 7.0
_PROOF_SCALING = 0.5


class ProductForm(NamedTuple):
    """What a product asks of the kernel.

    Attributes:
        gathered: Rows are picked by an index.
        biased: A bias is added.
        added: A rank-r term is added.
        activated: The clamped SwiGLU follows.
        turned: The matrices have N contiguous instead of K.
    """

    gathered: bool
    biased: bool
    added: bool
    activated: bool
    turned: bool


def package_obstacle() -> str | None:
    """Return why there is no QuACK that can be asked, None when it is installed as needed."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"the package {PACKAGE} is not installed; pip install gptoss-tune[quack]"
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if OLDEST <= numbers < TOO_NEW:
        return None
    wanted = " to before ".join(".".join(map(str, v)) for v in (OLDEST, TOO_NEW))
    return f"it needs {PACKAGE} {wanted}, got {version}"


@functools.cache
def quack_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why QuACK cannot run here at all, None when nothing speaks against trying it.

    Args:
        device: Of the layer.
        dtype: Of its activations.

    Returns:
        The reason, for a message.
    """
    if why := package_obstacle():
        return why
    if dtype != torch.bfloat16:
        return f"it needs bfloat16, got {dtype}"
    if device.type != "cuda" or torch.version.hip:
        return f"it needs an NVIDIA GPU, got device {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        return (
            f"it is for compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, got {capability[0]}."
            f"{capability[1]} ({torch.cuda.get_device_name(device)})"
        )
    return None


def quack_projection(
    rows: Tensor,
    matrices: ExpertMatrices,
    maps: TileMaps,
    expert_offsets: Tensor,
    *,
    indices: Tensor | None = None,
    bias: Tensor | None = None,
    low_rank: LowRankTerm | None = None,
    activation: Tensor | None = None,
    alpha: float = _ALPHA,
    limit: float = _LIMIT,
) -> Tensor:
    """Return ``rows W_e^T + bias_e + s low B_e^T``, ``[M, N]``, with all experts decoded at once.

    The rank-r product is stored where the result goes, and QuACK adds its own to it.

    Args:
        rows: ``[M, K]``, or ``[T, K]`` with ``indices``.
        matrices: Of all experts.
        maps: Tile maps of the routing.
        expert_offsets: ``[E + 1]`` int32.
        indices: ``[M]`` int32 or None.
        bias: ``[E, N]`` or None.
        low_rank: A rank-r term or None.
        activation: ``[M, N/2]`` to be filled, or None.
        alpha: Slope of the activation's sigmoid.
        limit: Bound of its clamps.
    """
    columns, inner = matrices.shape
    num_rows = rows.shape[0] if indices is None else indices.shape[0]
    out = torch.empty((num_rows, columns), dtype=rows.dtype, device=rows.device)
    say_once(f"expert product [{columns}, {inner}]: quack")
    if low_rank is not None:
        factor, gpu = low_rank.factor.to(rows.dtype), gpu_of(rows.device)
        tiles = choose_tiles("given", n=columns, k=factor.shape[2], dtype=rows.dtype, gpu=gpu)
        tile_map = maps.get(tiles.block_m, 0, matrices.num_experts)
        launch_product(low_rank.rows, factor, tile_map, tiles, out)
    (everything,) = expert_groups(matrices, scratch_bytes=2**63)
    quack_product(
        rows,
        everything.matrices,
        expert_offsets,
        out,
        indices=indices,
        bias=bias,
        scaling=None if low_rank is None else low_rank.scaling,
        activation=activation,
        alpha=alpha,
        limit=limit,
    )
    return out


def quack_product(
    rows: Tensor,
    matrices: Tensor,
    expert_offsets: Tensor,
    out: Tensor,
    *,
    indices: Tensor | None = None,
    bias: Tensor | None = None,
    scaling: float | None = None,
    activation: Tensor | None = None,
    alpha: float = _ALPHA,
    limit: float = _LIMIT,
) -> None:
    """Write ``rows W_e^T + bias_e + scaling * out`` into ``out``, and its activation if asked for.

    Args:
        rows: ``[M, K]``, or ``[T, K]`` with ``indices``; bf16, rows contiguous.
        matrices: ``[E, N, K]``, one of the last two dimensions contiguous.
        expert_offsets: ``[E + 1]`` int32.
        out: ``[M, N]`` contiguous; read only with ``scaling``. Rows past the last expert's keep
            what they hold.
        indices: ``[M]`` int32 or None.
        bias: ``[E, N]`` or None.
        scaling: Factor of what ``out`` holds, None when that is nothing.
        activation: ``[M, N/2]`` contiguous or None.
        alpha: Slope of the activation's sigmoid.
        limit: Bound of its clamps.
    """
    clamp = None if activation is None else (alpha, limit)
    product = make_product(bias is not None, scaling is not None, clamp)
    operands: dict[str, Any] = {}
    if bias is not None:
        operands["bias"] = bias
    if scaling is not None:
        operands["scaling"] = float(scaling)
    outputs = {"D": out}
    if activation is not None:
        outputs["activation"] = activation
    product(
        rows,
        matrices.mT,
        None if scaling is None else out,
        out=outputs,
        tuned=False,
        cu_seqlens_m=expert_offsets,
        A_idx=indices,
        **operands,
    )


@functools.cache
def make_product(biased: bool, added: bool, clamp: tuple[float, float] | None) -> Any:
    """Return QuACK's product with our epilogue.

    Args:
        biased: It takes ``bias``.
        added: It takes C and ``scaling``.
        clamp: ``(alpha, limit)`` of the activation, None without one.

    Raises:
        ImportError: QuACK is not installed.
    """
    frontend = importlib.import_module("quack.epilogue.frontend")
    operators = importlib.import_module("quack.epilogue.ops")
    ending = _store if clamp is None else _gated(*clamp)

    # QuACK reads the operands off the parameters' names.
    def plain(acc):
        return ending(acc)

    def with_bias(acc, bias):
        return ending(acc + bias)

    def with_term(acc, c, scaling):
        return ending(acc + c * scaling)

    def with_both(acc, c, scaling, bias):
        return ending(acc + c * scaling + bias)

    epilogue = (with_both if added else with_bias) if biased else (with_term if added else plain)
    pinned = {"bias": operators.RowVecLoad("bias")} if biased else {}
    if added:
        pinned["scaling"] = operators.Scalar("scaling")
    return frontend.gemm_epilogue(
        outputs=() if clamp is None else ("activation",),
        ops=pinned,
        mode=None if clamp is None else "acc_pair",
    )(epilogue)


def _store(value: Any) -> dict[str, Any]:
    return {"D": value}


def _gated(alpha: float, limit: float) -> Any:
    """Return the ending that stores Z and its activation."""
    values = importlib.import_module("quack.epilogue.math")
    pack, unpack = values.pack, values.unpack
    swiglu_oai = importlib.import_module("quack.activation").swiglu_oai

    def ending(value):
        gate, up = unpack(value)
        activation = swiglu_oai(gate, up, alpha=alpha, limit=limit)
        return {"D": pack(gate, up), "activation": activation}

    return ending


@functools.cache
def find_fault(form: ProductForm, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what QuACK computes wrongly in this form on ``device``, None when all is right.

    Args:
        form: Of the product.
        device: Where it will run.
        dtype: Of the activations.

    Returns:
        What was wrong, for a message.
    """
    generator = torch.Generator(device).manual_seed(1)
    for problem in problems(device, dtype):
        if form.turned == problem.matrices.is_contiguous():
            continue
        try:
            wrong = _error(form, problem, generator)
        except REFUSALS as error:
            return f"it raised {type(error).__name__} with {problem.name}: {error}"
        for name, error in wrong.items():
            if not error <= TOLERANCE:
                return f"its {name} is wrong by {error:.1e} with {problem.name} and {form}"
    return None


def _error(form: ProductForm, problem: Problem, generator: torch.Generator) -> dict[str, float]:
    """Return the relative RMS errors of Z and, where there is one, of the activation."""
    device, dtype = problem.rows.device, problem.rows.dtype
    experts, columns, inner = problem.matrices.shape
    num_rows = problem.rows.shape[0]

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

    # Z of about 5 has a sixth of its values beyond the clamps on either side.
    rows = problem.rows * (5 / inner**0.5)
    indices = None
    if form.gathered:
        indices = torch.arange(num_rows - 1, -1, -1, dtype=torch.int32, device=device)
        rows = rows.flip(0).contiguous()
    bias = normal(experts, columns) if form.biased else None
    out = normal(num_rows, columns)
    activation = normal(num_rows, columns // 2) if form.activated else None
    straight = rows if indices is None else rows[indices]
    expected = problem._replace(rows=straight).reference()
    used = problem.offsets[-1]
    if form.added:
        expected += _PROOF_SCALING * out[:used].float()
    if bias is not None:
        row = torch.arange(used, dtype=torch.int32, device=device)
        expert = torch.bucketize(row, problem.expert_offsets[1:], right=True)
        expected += bias[expert].float()
    quack_product(
        rows,
        problem.matrices,
        problem.expert_offsets,
        out,
        indices=indices,
        bias=bias,
        scaling=_PROOF_SCALING if form.added else None,
        activation=activation,
    )
    wrong = {"product": problem.error(out, expected)}
    if activation is not None:
        after = swiglu_reference(expected, alpha=_ALPHA, limit=_LIMIT)
        wrong["activation"] = problem.error(activation, after)
    return wrong
