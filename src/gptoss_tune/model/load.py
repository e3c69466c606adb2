"""A checkpoint to a module, tensor by tensor, with the experts left as released.

transformers' own MXFP4 loader either keeps the experts in a form it calls not trainable or expands
them to bf16 (three times the bytes); this one builds the module without storage and assigns each
tensor of the file once, so the peak is the model itself. The opened checkpoint has proven that no
tensor is missing or of another shape (one missing expert tensor would train a random expert); here
every tensor of the file also has to find its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gptoss_kernels import Mxfp4Weight, dequantize_reference, quantize_int8
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.harmony.vocabulary import ENDOFTEXT
from gptoss_tune.model.causal_lm import GptOssForTuning
from gptoss_tune.model.expert_weight import expert_stack
from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION
from gptoss_tune.model.packed.layers import HostLinear, Packed, packed_layer
from gptoss_tune.model.parallel.sharding import Share
from gptoss_tune.recipe.schema import ModelSection
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.names import EXPERT_PROJECTIONS

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_base(
    checkpoint: Checkpoint,
    section: ModelSection,
    *,
    device: torch.device | str = "cpu",
    share: Share | None = None,
) -> GptOssForTuning:
    """Return the frozen base model of ``checkpoint`` on ``device``, in the recipe's precision.

    Args:
        checkpoint: An opened base checkpoint, MXFP4 or bf16.
        section: The precisions and ``dtype`` decide what is held how, ``embeddings`` and
            ``head`` whether these are read to ``device`` at all.
        device: Where the weights go; tensors are read straight to it, and packed before the next.
        share: Read the experts of one rank only; the model computes after ``sharding.shard``.

    Returns:
        The model in evaluation mode, no parameter requiring gradients.

    Raises:
        CheckpointError: The checkpoint holds tensors that the model has no place for.
        RecipeError: MXFP4 experts are asked for, but the checkpoint stores bf16; or int8, which
            cannot hold weights of these sizes.
        MachineError: NF4 is asked for, but bitsandbytes cannot be used here.
    """
    if section.experts_precision == "mxfp4" and checkpoint.expert_format != "mxfp4":
        raise RecipeError(
            f"model.experts_precision is mxfp4, but {checkpoint.path} stores its experts in "
            f"{checkpoint.expert_format}; set model.experts_precision: bf16, or start from a "
            "checkpoint released in MXFP4"
        )
    if checkpoint.config.get("tie_word_embeddings"):
        for key, value, usual in (
            ("head_precision", section.head_precision, "bf16"),
            ("head", section.head, "gpu"),
            ("embeddings", section.embeddings, "gpu"),
        ):
            if value != usual:
                raise RecipeError(
                    f"model.{key} is {value}, but lm_head in {checkpoint.path} is its token "
                    f"embeddings (tie_word_embeddings); set model.{key}: {usual}"
                )
    dtype = DTYPES[section.dtype]
    model = _without_storage(checkpoint, dtype)
    _check_unknown(model, checkpoint)
    reader = _Reader(checkpoint, section, dtype, torch.device(device), share)
    for name, tensor in reader.tensors():
        precision = _packed_precision(name, section)
        if name == HEAD and section.head == "cpu":
            held = quantize_int8(tensor) if precision == "int8" else tensor
            head: Any = HostLinear(held, torch.device(device))  # an lm_head in all but its class
            model.lm_head = head
        elif precision == "bf16":
            _assign(model, name, tensor)
        else:
            _assign_packed(model, name, tensor, precision)
    if checkpoint.config.get("tie_word_embeddings"):
        model.lm_head.weight = model.model.embed_tokens.weight
    # The rotary frequencies are computed, not stored, and were computed without storage above.
    model.model.rotary_emb = GptOssRotaryEmbedding(model.config).to(device)
    model.generation_config.pad_token_id = model.config.pad_token_id
    return model.requires_grad_(False).eval()


def model_config(checkpoint: Checkpoint, dtype: torch.dtype) -> GptOssConfig:
    """Return the checkpoint's config for training: no quantiser, no auxiliary router loss.

    The released config carries ``router_aux_loss_coef: 0.9``; a run with a frozen router must not
    inherit it.
    """
    values = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    try:
        config = GptOssConfig.from_dict(values)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'}: transformers cannot read it ({error}); restore "
            "the released file"
        ) from error
    config.dtype = dtype
    if config.pad_token_id is None:
        # Fills rows to one length; nothing is computed from it, and every tool's base has its own.
        config.pad_token_id = min(ENDOFTEXT, config.vocab_size - 1)
    config.output_router_logits = False
    config.router_aux_loss_coef = 0.0
    config.use_cache = False
    return config


def _without_storage(checkpoint: Checkpoint, dtype: torch.dtype) -> GptOssForTuning:
    config = model_config(checkpoint, dtype)
    with torch.device("meta"):
        model = GptOssForTuning._from_config(
            config, dtype=dtype, experts_implementation=EXPERTS_IMPLEMENTATION
        )
    model.config._name_or_path = checkpoint.name
    model.name_or_path = checkpoint.name
    return model


def _check_unknown(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse tensors that the model has no place for; missing ones the checkpoint refused."""
    known = {name for name, _ in model.named_parameters()}
    known |= {f"{name}_{part}" for name in known for part in ("blocks", "scales")}
    unknown = [name for name in checkpoint.names() if name not in known]
    if unknown:
        shown = ", ".join(unknown[:6]) + (" ..." if len(unknown) > 6 else "")
        raise CheckpointError(
            f"{checkpoint.path}: {len(unknown)} tensors have no place in the model of config.json: "
            f"{shown}; the file and the config are of different models"
        )


@dataclass(frozen=True)
class _Reader:
    """Tensors of a checkpoint as they are to be held."""

    checkpoint: Checkpoint
    section: ModelSection
    dtype: torch.dtype
    device: torch.device
    share: Share | None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameter names with their tensors."""
        for name in sorted(self.checkpoint.names()):
            if name.endswith("_scales"):
                continue  # read together with its blocks
            if name.endswith("_blocks"):
                name = name.removesuffix("_blocks")
                blocks, experts, first = self._experts(f"{name}_blocks")
                scales, _, _ = self._experts(f"{name}_scales")
                stored: Mxfp4Weight | Tensor = Mxfp4Weight(blocks, scales)
                if self.section.experts_precision == "bf16":
                    dense = dequantize_reference(blocks, scales, dtype=self.dtype)
                    stored = dense.transpose(1, 2).contiguous()
                yield name, expert_stack(stored, experts, first)
            elif name.endswith(EXPERT_PROJECTIONS):
                dense, experts, first = self._experts(name)
                yield name, expert_stack(dense.to(self.dtype), experts, first)
            else:
                place = {EMBEDDINGS: self.section.embeddings, HEAD: self.section.head}.get(name)
                device = "cpu" if place == "cpu" else self.device
                yield name, self.checkpoint.read(name).to(device, self.dtype)

    def _experts(self, name: str) -> tuple[Tensor, int, int]:
        """Return this rank's part of a stack, of how many experts, and the number of its first."""
        experts = self.checkpoint.shape(name)[0]
        if self.share is None:
            return self.checkpoint.read(name).to(self.device), experts, 0
        first, stop = self.share.of_experts(experts)
        return self.checkpoint.read_rows(name, first, stop).to(self.device), experts, first


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner_name, _, parameter_name = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    assert getattr(owner, parameter_name).shape == tensor.shape, name  # the checkpoint checked it
    setattr(owner, parameter_name, nn.Parameter(tensor, requires_grad=False))


def _packed_precision(name: str, section: ModelSection) -> Literal["bf16", "int8", "nf4"]:
    """Return how a weight is held; everything but attention and ``lm_head`` as it is read."""
    if name == HEAD:
        return section.head_precision
    if re.fullmatch(r".*\.self_attn\.[qkvo]_proj\.weight", name):
        return section.linear_precision
    return "bf16"


def _assign_packed(model: nn.Module, name: str, tensor: Tensor, precision: Packed) -> None:
    """Put a packed layer in the place of the one whose weight was read."""
    place = name.removesuffix(".weight")
    layer = model.get_submodule(place)
    assert isinstance(layer, nn.Linear) and layer.weight.shape == tensor.shape, name
    key = "model.head_precision" if place == "lm_head" else "model.linear_precision"
    owner, _, attribute = place.rpartition(".")
    packed = packed_layer(layer, tensor, precision, key)
    setattr(model.get_submodule(owner), attribute, packed)
