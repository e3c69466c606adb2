"""Other names for the release's tensors: what wraps a model leaves its mark in each of them.

transformers 5.5.2 and later, after ``Mxfp4Config(dequantize=True)``, write bf16 values
``[E, in, out]`` as ``gate_up_proj_blocks``; the dtype tells them from codes.
"""

from __future__ import annotations

import re

from gptoss_tune.weights.layouts.tensors import TensorSpec

_WRAPPERS = {
    "_orig_mod",
    "module",
    "base_model",
    "language_model",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
_INSIDE_MODEL = {"layers", "embed_tokens", "norm"}
_PACKED_NAME = re.compile(r"(.*\.experts\.(?:gate_up_proj|down_proj))_blocks")
ONE_BY_ONE = re.compile(
    r"\.experts\.(?:experts\.)?"
    r"(?:\d+\.|(?:gate_up_projs|down_projs|gate_projs|up_projs|gate_up|down)\.)"
)
"""The name of a tensor of a single expert, wherever it begins."""


def released_name(spec: TensorSpec) -> str:
    """Return the release's name of a tensor, by its stored name and dtype."""
    name = without_wrappers(spec.name).replace(".mlp.router.linear.", ".mlp.router.")
    packed = _PACKED_NAME.fullmatch(name)
    return packed[1] if packed and spec.dtype.is_floating_point else name


def how_named(spec: TensorSpec) -> str:
    """Return in words what distinguishes a tensor's name from the release's."""
    marks = [part for part in spec.name.split(".") if part in _WRAPPERS]
    said = [f"`{'.'.join(dict.fromkeys(marks))}.` in the name"] if marks else []
    if ".mlp.router.linear." in spec.name:
        said.append("`router.linear.` for `router.`")
    if _PACKED_NAME.fullmatch(spec.name) and spec.dtype.is_floating_point:
        said.append("dense values named `_blocks`")
    return " and ".join(said) or "no `model.` in the name"


def without_wrappers(name: str) -> str:
    """Return a tensor's or module's name without the wrappers of the program that saved it.

    ``module._orig_mod.layers.0.mlp`` is ``model.layers.0.mlp``, and so is PEFT's
    ``base_model.model.model.layers.0.mlp``.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts[:1] == ["model"]:
        del parts[0]
    if parts and parts[0] in _INSIDE_MODEL:
        parts.insert(0, "model")
    return ".".join(parts)
