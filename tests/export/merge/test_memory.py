"""A merge holds chunks of a tensor, not the tensor, and never the model."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from gptoss_tune.testing.tiny import tiny_checkpoint

# The base holds two tensors of 103 MB; a merge that read one of them whole in fp32 would need 206.
MOST_MIB = 120

SCRIPT = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
base, adapter, out = sys.argv[1:]
checkpoint = open_checkpoint(base)
opened = [WeightedAdapter(open_adapter(adapter, checkpoint))]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(checkpoint, opened, Path(out), MergeOptions())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def write_adapter(base, out):
    """A random adapter of the head, in PEFT's files, without loading a model."""
    out.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["lm_head"]}
    (out / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.lm_head"
    factors = {
        f"{prefix}.lora_A.weight": torch.randn(4, 256),
        f"{prefix}.lora_B.weight": torch.randn(201_088, 4),
    }
    save_file(factors, out / "adapter_model.safetensors")


@pytest.mark.slow
def test_the_peak_is_a_few_chunks(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", layers=1, experts=2, hidden=256, intermediate=64)
    write_adapter(base, tmp_path / "adapter")
    arguments = [str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < MOST_MIB
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["bytes"] > 200e6
