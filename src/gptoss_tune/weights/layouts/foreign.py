"""What people have instead of a checkpoint of safetensors: what it is, and the way out; no torch.

A quantised file does not hold the values that it was made of. Decoding it would be easy for some
formats and right for none: what is trained or merged on the decoded values is another model than
the one that people mean by its name, and the release is one download away.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_SOURCE = "start from the checkpoint that was quantised, or from the release"
_QUANTISERS = {
    "auto-round": "AutoRound",
    "autoround": "AutoRound",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes (NF4 or int8)",
    "compressed-tensors": "LLM Compressor (compressed-tensors)",
    "fbgemm_fp8": "FBGEMM FP8",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "modelopt": "NVIDIA ModelOpt",
    "modelopt_fp4": "NVIDIA ModelOpt (NVFP4)",
    "nvfp4": "NVFP4",
    "quark": "AMD Quark",
    "torchao": "torchao",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def quantised_otherwise(method: str, section: Any) -> str:
    """Return why weights of another quantiser than the release's are no base, and what is.

    Args:
        method: ``quant_method`` as it is shown.
        section: ``quantization_config``.
    """
    algorithm = section.get("quant_algo") if isinstance(section, dict) else None
    name = _QUANTISERS.get(method.strip("'"), "a quantiser unknown here")
    if isinstance(algorithm, str) and algorithm.isprintable():
        name += f", {algorithm[:20]}"
    return (
        f"quant_method is {method}: quantised by {name}, and the values from before are not in it; "
        f"expected 'mxfp4' (as released) or no quantization_config (bf16), {_SOURCE}"
    )


def holds_a_model(path: Path) -> bool:
    """Return whether a folder without ``config.json`` holds the weights of a whole model."""
    patterns = ("model*.safetensors", "consolidated*.safetensors", "model.bin")
    return any(any(path.glob(pattern)) for pattern in patterns)


def without_config(path: Path) -> str:
    """Return what a folder without ``config.json`` is, and what to use instead."""
    if (path / "model.bin").exists():
        above = path.absolute().parent
        use = f"the folder above it, {above}" if (above / "config.json").is_file() else "the rest"
        return (
            f"{path}: is metal/ of a release, made for Apple's GPUs by OpenAI's own code; use "
            f"{use}, which holds the same weights as safetensors with config.json"
        )
    if any(path.glob("*.safetensors")):
        return (
            f"{path / 'config.json'}: no such file; the weights beside it cannot be told apart "
            "without, copy it from where they came from"
        )
    return f"{path / 'config.json'}: no such file; expected the folder of a gpt-oss checkpoint"


def without_weights(path: Path, single: str, index: str) -> str:
    """Return why a folder without safetensors cannot be used."""
    pickles = sorted(p.name for pattern in _PICKLES for p in path.glob(pattern))
    if pickles:
        return (
            f"{path}: holds pickle files ({pickles[0]}), which can run code when they are read; "
            "expected safetensors. If you trust its source, load it with transformers "
            "(from_pretrained) and save it again with save_pretrained, which writes safetensors"
        )
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if others:
        return (
            f"{path}: holds {others[0]}{' and others' * (len(others) > 1)}, but neither {single} "
            f"nor {index}, by which programs find weights; rename a file that holds the whole "
            f"model to {single}, or copy the index of several"
        )
    return f"{path}: holds neither {single} nor {index}; expected safetensors weights"


def file_for_a_folder(path: Path) -> str:
    """Return what to name instead of a file."""
    folder = path.parent
    if path.suffix in (".safetensors", ".json") and (folder / "config.json").is_file():
        return f"{path}: is one file of a checkpoint; name its folder, {folder}"
    return f"{path}: is a file; expected the folder that holds config.json"


def dead_link(path: Path) -> str | None:
    """Return what is wrong with a link that leads nowhere; ``None``: it is none."""
    if not path.is_symlink() or path.exists():
        return None
    target = os.path.realpath(path)
    if os.path.islink(target):
        return f"{path}: is a link that leads round to itself; set it to the checkpoint's folder"
    return f"{path}: is a link to {target}, which is not there; copy or download it again"
