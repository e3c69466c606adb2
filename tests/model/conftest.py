"""Tiny bases in the released layout, and their twins in plain transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Mxfp4Config

from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint

TINY = {"seed": 3, "layers": 2, "experts": 6, "hidden": 64, "intermediate": 96}


@pytest.fixture(scope="session")
def mxfp4_base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("mxfp4") / "base", **TINY, format="mxfp4")


@pytest.fixture(scope="session")
def bf16_base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("bf16") / "base", **TINY, format="bf16")


@pytest.fixture(scope="session")
def opened(mxfp4_base):
    return open_checkpoint(str(mxfp4_base))


@pytest.fixture
def plain_model(mxfp4_base):
    """The same weights in transformers' own classes, expanded, fp32, eager experts."""
    model = AutoModelForCausalLM.from_pretrained(
        mxfp4_base,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        experts_implementation="eager",
        attn_implementation="eager",
    )
    return model.float()  # transformers 5.17 expands to bf16 whatever the dtype


@pytest.fixture
def input_ids():
    generator = torch.Generator().manual_seed(11)
    return torch.randint(0, 199_998, (2, 19), generator=generator)


@pytest.fixture
def randomise_adapters():
    """Give every A and B values, as a run would have; PEFT starts B at zero."""

    def randomise(model, seed=5, scale=0.5):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "lora_" in name:
                    values = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(scale * values / parameter.shape[-1] ** 0.5)

    return randomise


@pytest.fixture
def small_model():
    """Make a two-layer model with a window of 8 and 97 words, adapted, ready to train."""
    from transformers import GptOssConfig

    from gptoss_tune.model.causal_lm import GptOssForTuning
    from gptoss_tune.model.expert_weight import ExpertWeight
    from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION
    from gptoss_tune.model.lora import add_adapters
    from gptoss_tune.recipe import LoraSection

    def make(seed=0, adapted=True, dtype=torch.float32):
        torch.manual_seed(seed)
        config = GptOssConfig(
            num_hidden_layers=2,
            num_local_experts=6,
            num_experts_per_tok=2,
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            use_cache=False,
        )
        model = GptOssForTuning._from_config(config, experts_implementation=EXPERTS_IMPLEMENTATION)
        for name, parameter in model.named_parameters():
            wide = any(word in name for word in ("embed", "norm", "sinks"))
            std = 1.0 if "embed" in name else 0.5 if wide else 0.1
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=std)
        for layer in model.model.layers:
            for name in ("gate_up_proj", "down_proj"):
                weight = ExpertWeight(getattr(layer.mlp.experts, name).data.to(dtype), dtype)
                packed = torch.nn.Parameter(weight, requires_grad=False)
                setattr(layer.mlp.experts, name, packed)
        model.requires_grad_(False)
        if adapted:
            model = add_adapters(model, LoraSection(rank=4))
        for parameter in model.parameters():
            if not isinstance(parameter, ExpertWeight):
                parameter.data = parameter.data.to(dtype)
        return model

    return make
