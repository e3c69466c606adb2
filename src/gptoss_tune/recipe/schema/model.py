"""The recipe's ``model`` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gptoss_tune.recipe.schema.value_types import PathText, Section, Text


class ModelSection(Section):
    """Which weights are the base, and in which precision they are held."""

    name_or_path: PathText = Field(examples=["openai/gpt-oss-20b"])
    """Base checkpoint: a local folder, or a name on the Hugging Face Hub."""
    revision: Text | None = None
    """Commit, tag or branch of a base on the Hub; null: its default branch."""
    experts_precision: Literal["mxfp4", "bf16"] = "mxfp4"
    """How the experts are held: packed as released (mxfp4), or expanded (bf16)."""
    linear_precision: Literal["bf16", "int8", "nf4"] = "bf16"
    """How the attention projections are held; nf4 needs bitsandbytes."""
    head_precision: Literal["bf16", "int8", "nf4"] = "bf16"
    """How lm_head is held, decoded by tiles when it is used; nf4 needs bitsandbytes."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute dtype, and the dtype of every weight that is not quantised."""
    backend: Literal["auto", "torch", "triton"] = "auto"
    """Experts, loss, norms, rotation: auto is triton (and Liger) on a supported GPU, else torch."""
    attention: Literal["auto", "eager", "torch_flash", "flex", "fa4", "triton", "cudnn"] = "auto"
    """Attention engine; every one computes the sinks and their part of the gradient."""
    embeddings: Literal["gpu", "cpu"] = "gpu"
    """Where the token embeddings are held; cpu frees 1.1 GiB of the GPU at one wait per step."""
    head: Literal["gpu", "cpu"] = "gpu"
    """Where lm_head is held; cpu frees 1.1 GiB of the GPU, and it comes over the bus by tiles."""
