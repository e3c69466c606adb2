"""Adapters on attention and on all experts, created by PEFT in PEFT's own format.

The expert adapters use PEFT's ``target_parameters``: one A and one B matrix per layer and
projection, in which every expert has its own ``rank`` rows and columns. ``expert_rank`` may differ
from ``rank``, because at 120b a rank of 16 on 128 experts is already a billion parameters; the
scaling stays alpha / rank unless ``expert_alpha`` says otherwise, so that changing the rank of the
experts does not change the size of their update.

Where experts are chosen (``lora.experts``), the factors are those of the n chosen ones alone, in
PEFT's layout of n experts: A ``[n*R, in]``, B ``[out, R*n]``. Gradients, moments and checkpoints
shrink with them. For the products of a layer they are laid out for all E, with zeros for the
others, which is the adapter that has them all and trains some: the same bits, since the kernels
see the same tensors. Kernels that take an index were the alternative: less memory for a moment, and
every engine a second way to be wrong.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import layer as peft_layer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_tune.errors import RecipeError
from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION, LowRankUpdate
from gptoss_tune.recipe.recipe import chosen_count
from gptoss_tune.recipe.schema import LoraSection
from gptoss_tune.weights.adapter_config import ExpertChoice

ADAPTER_NAME = "default"
_LAYER = re.compile(r"\blayers\.(\d+)\.mlp\.experts\b")


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


def add_adapters(
    model: GptOssForCausalLM, section: LoraSection, choice: ExpertChoice | None = None
) -> PeftModel:
    """Wrap ``model`` with fresh adapters: A random, B zero, both fp32, everything else frozen.

    Args:
        model: The base.
        section: What is adapted.
        choice: The chosen experts of every adapted layer, as many as ``section.experts`` says.

    Raises:
        RecipeError: The section names layers or modules that the model does not have, or chooses
            experts and the choice is another, or none.
    """
    config = lora_config(section, model.config.num_hidden_layers)
    _check_choice(model, section, choice)
    choose_experts(model, choice)
    # PEFT picks its 4-bit layer only where the model declares 4-bit layers. The mark is taken off
    # again because TRL reads it as "hold the adapters in bf16", and we train them in fp32.
    holds_nf4 = any(type(module).__name__ == "Linear4bit" for module in model.modules())
    if holds_nf4:
        model.is_loaded_in_4bit = True  # pyright: ignore[reportArgumentType]
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 looks for these patterns among modules only and calls ours ignored, while it
            # applies them to parameters.
            warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not")
            adapted = get_peft_model(model, with_expert_wrapper(config), adapter_name=ADAPTER_NAME)
    except ValueError as error:
        raise RecipeError(f"lora: PEFT refused the adapter: {error}") from error
    finally:
        if holds_nf4:
            del model.is_loaded_in_4bit
    assert isinstance(adapted, PeftModel)
    return adapted


def _check_choice(
    model: GptOssForCausalLM, section: LoraSection, choice: ExpertChoice | None
) -> None:
    """Refuse a choice that is not the one that the recipe asks for."""
    asked = chosen_count(section, model.config.num_local_experts)
    layers = section.layers or range(model.config.num_hidden_layers)
    wanted = None if asked is None else dict.fromkeys(sorted(layers), asked)
    found = None if choice is None else {layer: len(choice[layer]) for layer in sorted(choice)}
    if wanted != found:
        raise RecipeError(
            f"lora.experts: got a choice of {_in_words(found)}, expected {_in_words(wanted)}; "
            "experts are chosen by a pass over the training data, or by the adapter of "
            "lora.init_from"
        )


def _in_words(counts: Mapping[int, int] | None) -> str:
    if counts is None:
        return "no experts, as all have an adapter"
    numbers = " or ".join(map(str, sorted(set(counts.values()))))
    return f"{numbers} experts in each of {len(counts)} layers"


def load_adapters(
    model: GptOssForCausalLM,
    folder: Path,
    config: LoraConfig | None = None,
    choice: ExpertChoice | None = None,
) -> PeftModel:
    """Wrap ``model`` with the trained adapters of ``folder``, frozen.

    Args:
        model: The base they were trained on.
        folder: An adapter in PEFT's format that has been checked against the base.
        config: What PEFT acts on; ``None``: the file of the folder.
        choice: The experts that it has factors of; ``None``: all.
    """
    choose_experts(model, choice)
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

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """Create the factors: of the chosen experts alone, where some were chosen."""
        every, chosen = self.num_experts, chosen_experts(self.get_base_layer())
        if chosen is not None:
            self.num_experts = len(chosen)
        try:
            super().update_layer(*args, **kwargs)
        finally:
            self.num_experts = every

    def get_delta_factors(self, adapter_name: str) -> tuple[Tensor, Tensor, float]:
        """Return ``(lhs, rhs, scaling)`` for all E experts; see PEFT's.

        The factors of the chosen experts are laid out among zeros as PEFT would hold all of them,
        so that the views the kernels get have the same strides, too.
        """
        chosen = chosen_experts(self.get_base_layer())
        if chosen is None:
            return super().get_delta_factors(adapter_name)
        pairs: Any = (self.lora_A, self.lora_B)
        a, b = (pair[adapter_name].weight for pair in pairs)
        index = torch.tensor(chosen, device=a.device)
        # A has its rows expert by expert, B its columns rank by rank.
        every_A = place_experts(a.view(len(chosen), -1, a.shape[1]), index, self.num_experts, 0)
        every_B = place_experts(b.view(b.shape[0], -1, len(chosen)), index, self.num_experts, 2)
        lhs, rhs = every_A.mT, every_B.permute(2, 0, 1).mT
        if self._did_swap_in_out_features:
            lhs, rhs = rhs.mT, lhs.mT
        dtype = self.get_param().dtype
        return lhs.to(dtype), rhs.to(dtype), self.scaling[adapter_name]

    def get_delta_weight(self, adapter_name: str, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``s B A`` of all experts; see PEFT's.

        Raises:
            NotImplementedError: The factors are of chosen experts.
        """
        if chosen_experts(self.get_base_layer()) is not None:
            raise NotImplementedError(
                "this adapter has factors of chosen experts alone, which PEFT cannot merge; use "
                "`gptoss-tune merge`, or give PEFT the copy that `gptoss-tune adapter --for peft` "
                "writes"
            )
        return super().get_delta_weight(adapter_name, *args, **kwargs)

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


def place_experts(factors: Tensor, index: Tensor, experts: int, dim: int) -> Tensor:
    """Return ``factors`` of chosen experts among zeros for the others; the gradient comes back.

    Args:
        factors: n entries along ``dim``, floating.
        index: ``[n]`` int64, their numbers, each once.
        experts: E, entries of the result along ``dim``.
        dim: Where experts lie.
    """
    return _Placed.apply(factors, index, experts, dim)


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factors: Tensor, index: Tensor, experts: int, dim: int) -> Tensor:
        ctx.index, ctx.dim = index, dim
        shape = list(factors.shape)
        shape[dim] = experts
        return factors.new_zeros(shape).index_copy_(dim, index, factors)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return grad.index_select(ctx.dim, ctx.index), None, None, None


def choose_experts(model: nn.Module, choice: ExpertChoice | None) -> None:
    """Let the adapters that ``model`` gets have factors of chosen experts alone.

    Args:
        model: Without adapters yet.
        choice: Numbers of the experts, ascending, by that of their layer; ``None``: all.
    """
    for name, module in model.named_modules():
        found = _LAYER.search(name)
        if found is not None and isinstance(module, cast(type, GptOssExperts)):
            experts: Any = module
            experts.chosen_experts = None if choice is None else choice.get(int(found[1]))


def chosen_experts(experts: nn.Module) -> tuple[int, ...] | None:
    """Return the experts of a ``GptOssExperts`` that have factors; ``None``: all."""
    return getattr(experts, "chosen_experts", None)


def choice_of(model: nn.Module) -> dict[int, tuple[int, ...]] | None:
    """Return the chosen experts of ``model`` by layer; ``None``: its adapters are on all."""
    found = {}
    for name, module in model.named_modules():
        place = _LAYER.search(name)
        chosen = chosen_experts(module)
        if place is not None and chosen is not None:
            found[int(place[1])] = chosen
    return found or None
