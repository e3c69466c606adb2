"""PEFT's wrapper of an adapted parameter, for experts that take the factors as they are.

PEFT applies the adapter of a bare parameter by parametrizing it: on every forward the module gets a
new class, the parameter becomes a property, and afterwards both are taken back. That was a quarter
of the host's time in a forward pass, for factors that the expert forward reads by name. So the
wrapper hands them on as an argument instead. Everything else is PEFT's: it creates, switches, saves
and loads the factors, and which of them act is looked up in its state on every call.

The class is registered through the configuration (``LoraConfig._register_custom_module``), PEFT's
seam for layers of one's own, which is not saved with an adapter. Rejected: exchanging PEFT's
wrappers after it has made them, which every later ``add_adapter`` would have to repeat.
"""

from __future__ import annotations

from typing import Any, cast

from peft import LoraConfig
from peft.tuners.lora import layer as peft_layer
from torch import Tensor
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION, LowRankUpdate


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
