"""Adapters as other programs make them: PEFT's kinds by PEFT itself, others laid out by hand."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gptoss_tune.cli import app

PREFIX = "base_model.model."
HIDDEN, INNER, EXPERTS, LAYERS = 64, 96, 4, 2


class Foreign:
    """Makes adapters, and says what a right merge of them holds."""

    prefix = PREFIX
    sizes = (HIDDEN, INNER, EXPERTS, LAYERS)

    def __init__(self, lab, base):
        self.lab, self.base = lab, base

    def by_peft(self, out, *, seed=0, **config):
        """An adapter by plain PEFT of which everything that trains has moved."""
        arguments = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **config}
        model = peft.get_peft_model(self.lab.plain_model(self.base), peft.LoraConfig(**arguments))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator) * 0.05
                    if "magnitude" in name:
                        parameter.mul_(1 + noise)
                    elif "lora_" in name:
                        parameter.copy_(noise)
                    else:
                        parameter.add_(noise)
        model.save_pretrained(out)
        return Path(out)

    @staticmethod
    def by_hand(out, weights, **config):
        """An adapter with these tensors and this configuration."""
        out = Path(out)
        out.mkdir(parents=True)
        save_file(
            {n: t.contiguous() for n, t in weights.items()}, out / "adapter_model.safetensors"
        )
        told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **config}
        (out / "adapter_config.json").write_text(json.dumps(told))
        return out

    @staticmethod
    def factors(module, into, out, rank, *, seed):
        """Random factors of a linear layer under PEFT's names."""
        generator = torch.Generator().manual_seed(seed)
        return {
            f"{PREFIX}{module}.lora_A.weight": torch.randn(rank, into, generator=generator) * 0.1,
            f"{PREFIX}{module}.lora_B.weight": torch.randn(out, rank, generator=generator) * 0.1,
        }

    def merged(self, adapter, out, *options, code=0):
        """What the command merges and verifies, and what it says."""
        arguments = ["merge", str(adapter), "--base", str(self.base), "--out", str(out), *options]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, (done.output, done.exception)
        return self.lab.weights(out), done

    def run(self, *arguments):
        """A command's result."""
        return CliRunner().invoke(app, [str(each) for each in arguments])

    @staticmethod
    def assert_rounded(found, expected):
        """``found`` is ``expected`` rounded once to bf16, up to the last bits of two fp32 sums."""
        assert set(found) == set(expected), set(found) ^ set(expected)
        for name, tensor in found.items():
            wanted = expected[name].double()
            step = torch.finfo(torch.bfloat16).eps / 2 * 1.01
            far = ((tensor.double() - wanted).abs() > step * wanted.abs() + 1e-6).sum()
            assert far == 0, f"{name}: {int(far)} of {tensor.numel()} values are elsewhere"


@pytest.fixture(scope="session")
def foreign(lab, base):
    return Foreign(lab, base)


@pytest.fixture(scope="session")
def base_weights(lab, base):
    """The base's values in fp32, dense, by name."""
    return {n: t.clone() for n, t in lab.plain_model(base, torch.float32).state_dict().items()}


@pytest.fixture(scope="session")
def weights_of():
    return lambda folder: load_file(Path(folder) / "adapter_model.safetensors")
