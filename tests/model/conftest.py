"""Tiny bases in the released layout, and their twins in plain transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Mxfp4Config

from gptoss_tune.checkpoint import open_checkpoint
from gptoss_tune.testing import tiny_checkpoint

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
    return AutoModelForCausalLM.from_pretrained(
        mxfp4_base,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        experts_implementation="eager",
        attn_implementation="eager",
    )


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
