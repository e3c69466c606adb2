"""The ways in which a base comes, and plain transformers to compare them by."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="session")
def ways():
    """What ``ways.py`` has, writers of every layout; ``other``: what ``other_ways.py`` has."""
    other = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "other_ways.py")))
    return SimpleNamespace(**vars(other.WAYS), other=other)


@pytest.fixture(scope="session")
def bases(ways, tmp_path_factory):
    """The same tiny model, MXFP4 and bf16."""
    return ways.bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="session")
def logits():
    """Return a function from a folder to its logits in fp32 by plain transformers."""

    def compute(folder):
        from transformers import AutoModelForCausalLM, Mxfp4Config

        packed = "quantization_config" in json.loads((Path(folder) / "config.json").read_text())
        arguments = {"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **arguments)
        tokens = torch.arange(100, 164).reshape(2, 32)
        with torch.no_grad():
            return model.float()(tokens).logits

    return compute


@pytest.fixture(scope="session")
def released_logits(bases, logits):
    """The logits of both released folders, which are one model."""
    return logits(bases["bf16"])
