"""A merge to GGUF holds a few experts, not a stack, and never the model."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from gptoss_tune.testing.tiny import tiny_checkpoint

# A stack of gate and up is 134 MB in bf16 and 268 in fp32, the head 103 MB; one expert is 4 MB.
# Header and vocabulary are made before the measure begins, since they do not grow with the model.
MOST_MIB = 120

SCRIPT = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter
from gptoss_tune.export.gguf.container import GgufFiles
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
base, adapter, out, expert_format = sys.argv[1:]
checkpoint = open_checkpoint(base)
opened = [WeightedAdapter(open_adapter(adapter, checkpoint))]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
seen = []
def progress(done, total):
    seen.append(peak())
class Measured(GgufFiles):
    def write(self, progress):
        seen.append(peak())
        super().write(progress)
options = MergeOptions(expert_format, max_shard_size=45_000_000_000, accept_loss=True)
merge(checkpoint, opened, Path(out), options, container=Measured, progress=progress)
print(seen[-1] - seen[0])
"""


def write_adapter(base, out):
    """A random adapter of the head and of all experts, in PEFT's files, without a model."""
    out.mkdir()
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = {
        **{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["lm_head"]},
        **{"target_parameters": targets},
    }
    (out / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.lm_head"
    experts, hidden, inner = 64, 512, 1024
    stack = "base_model.model.model.layers.0.mlp.experts"
    factors = {
        f"{prefix}.lora_A.weight": torch.randn(4, hidden),
        f"{prefix}.lora_B.weight": torch.randn(201_088, 4),
        f"{stack}.base_layer.lora_A.weight": torch.randn(experts * 4, hidden) * 0.05,
        f"{stack}.base_layer.lora_B.weight": torch.randn(2 * inner, 4 * experts) * 0.05,
        f"{stack}.lora_A.weight": torch.randn(experts * 4, inner) * 0.05,
        f"{stack}.lora_B.weight": torch.randn(hidden, 4 * experts) * 0.05,
    }
    save_file(factors, out / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("expert_format", ["mxfp4", "bf16"])
def test_the_peak_is_a_few_experts(tmp_path, expert_format):
    sizes = {"layers": 1, "experts": 64, "hidden": 512, "intermediate": 1024}
    base = tiny_checkpoint(tmp_path / "base", **sizes)
    write_adapter(base, tmp_path / "adapter")
    places = [str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]
    command = [sys.executable, "-c", SCRIPT, *places, expert_format]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 <= float(done.stdout) < MOST_MIB
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["bytes"] > 400e6
    assert len(report["survival"]["stacks"]) == (2 if expert_format == "mxfp4" else 0)
