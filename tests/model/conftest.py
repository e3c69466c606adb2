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
