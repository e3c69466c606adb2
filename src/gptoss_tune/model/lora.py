"""Adapters on attention and on all experts, created by PEFT in PEFT's own format.

The expert adapters use PEFT's ``target_parameters``: one A and one B matrix per layer and
projection, in which every expert has its own ``rank`` rows and columns. ``expert_rank`` may differ
from ``rank``, because at 120b a rank of 16 on 128 experts is already a billion parameters; the
scaling stays alpha / rank unless ``expert_alpha`` says otherwise, so that changing the rank of the
experts does not change the size of their update.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import layer as peft_layer
from torch import Tensor
from transformers import GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_tune.errors import RecipeError
from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION, LowRankUpdate
from gptoss_tune.recipe.schema import LoraSection

ADAPTER_NAME = "default"


def lora_config(section: LoraSection, num_layers: int) -> LoraConfig:
    """Return PEFT's configuration for the recipe's ``lora`` section.

    Args:
        section: What to adapt, and at which rank.
        num_layers: Layers of the base; the section's ``layers`` must lie below it.

    Raises:
        RecipeError: A named layer does not exist.
    """
    layers = list(range(num_layers)) if section.layers is None else list(section.layers)
    unknown = [layer for layer in layers if layer >= num_layers]
    if unknown:
        raise RecipeError(
            f"lora.layers: got {unknown}, but the base has {num_layers} layers, 0 to "
            f"{num_layers - 1}; name layers within that range"
        )
    expert_rank = section.expert_rank or section.rank
    expert_alpha = section.expert_alpha or section.alpha * expert_rank / section.rank
    parameters = [f"mlp.experts.{name}" for name in section.target_parameters]
    differs = bool(parameters) and (expert_rank, expert_alpha) != (section.rank, section.alpha)
    if section.layers is not None:
        parameters = [f"layers.{layer}.{name}" for layer in layers for name in parameters]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=section.rank,
        lora_alpha=section.alpha,  # pyright: ignore[reportArgumentType] - PEFT divides, so a float is exact
        target_modules=list(section.target_modules),
        target_parameters=parameters,
        layers_to_transform=None if section.layers is None else layers,
        layers_pattern=None if section.layers is None else "layers",
        rank_pattern=dict.fromkeys(parameters, expert_rank) if differs else {},
        alpha_pattern=dict.fromkeys(parameters, expert_alpha) if differs else {},
    )


def add_adapters(model: GptOssForCausalLM, section: LoraSection) -> PeftModel:
    """Wrap ``model`` with fresh adapters: A random, B zero, both fp32, everything else frozen.

    Raises:
        RecipeError: The section names layers or modules that the model does not have.
    """
    config = lora_config(section, model.config.num_hidden_layers)
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 looks for these patterns among modules only and calls ours ignored, while it
            # applies them to parameters.
            warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not")
            adapted = get_peft_model(model, with_expert_wrapper(config), adapter_name=ADAPTER_NAME)
    except ValueError as error:
        raise RecipeError(f"lora: PEFT refused the adapter: {error}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def load_adapters(
    model: GptOssForCausalLM, folder: Path, config: LoraConfig | None = None
) -> PeftModel:
    """Wrap ``model`` with the trained adapters of ``folder``, frozen.

    Args:
        model: The base they were trained on.
        folder: An adapter in PEFT's format that has been checked against the base.
        config: What PEFT acts on; ``None``: the file of the folder.
    """
    if config is None:
        read = LoraConfig.from_pretrained(str(folder))
        assert isinstance(read, LoraConfig)
        config = read
    with warnings.catch_warnings():
        # As in ``add_adapters``.
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not")
        return PeftModel.from_pretrained(model, str(folder), config=with_expert_wrapper(config))


# PEFT knows wrappers that it may nest by the name of their class.
class ParamWrapper(peft_layer.ParamWrapper):
    """The adapter of one expert stack, applied by ``experts_forward``.

    A stack with its adapters disabled or merged, and experts that transformers or another
    implementation runs, are PEFT's own business.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the experts with this stack's factors beside those of the wrappers around it.

        Raises:
            NotImplementedError: Several adapters act at once.
        """
        experts: Any = self.get_base_layer()
        implementation = experts.config._experts_implementation
        # A batch of mixed adapters is among what PEFT refuses.
        plain = self.disable_adapters or self.merged or "adapter_names" in kwargs
        if plain or implementation != EXPERTS_IMPLEMENTATION:
            return super().forward(x, *args, **kwargs)
        active = [name for name in self.active_adapters if name in self.lora_A]
        if not active:
            return self.base_layer(x, *args, **kwargs)
        if len(active) > 1:
            raise NotImplementedError(
                f"{len(active)} adapters are active on one stack of experts, {', '.join(active)}, "
                "and their sum would expand it; expected one: `set_adapter(NAME)`, or combine "
                "them with `gptoss-tune merge`"
            )
        lhs, rhs, scaling = self.get_delta_factors(active[0])
        low_rank = dict(kwargs.pop("low_rank", {}))
        low_rank[self.parameter_name] = LowRankUpdate(lhs.mT, rhs.mT, scaling)
        return self.base_layer(x, *args, low_rank=low_rank, **kwargs)


def with_expert_wrapper(config: LoraConfig) -> LoraConfig:
    """Let PEFT wrap expert stacks in ``ParamWrapper``; ``config`` itself is changed."""
    config._register_custom_module({cast(type, GptOssExperts): ParamWrapper})
    return config
