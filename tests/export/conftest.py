"""A tiny base and adapters made by plain PEFT on plain transformers, as any user's would be."""

import hashlib
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

SIZES = {"layers": 2, "experts": 4}
CHOSEN = {0: [1, 3], 1: [0, 2]}


class Lab:
    """What the tests of this folder do again and again."""

    experts = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")

    @staticmethod
    def plain_model(path, dtype=torch.bfloat16):
        """The checkpoint in plain transformers, dense."""
        from transformers import AutoModelForCausalLM, Mxfp4Config

        packed = "quantization_config" in json.loads((Path(path) / "config.json").read_text())
        arguments = {"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **arguments)

    def adapter(self, base, out, *, seed=0, scale=0.05, **changes):
        """An adapter by plain PEFT with random A and B, saved as PEFT saves it."""
        arguments = {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "target_parameters": list(self.experts),
            "rank_pattern": dict.fromkeys(self.experts, 3),
            "alpha_pattern": dict.fromkeys(self.experts, 9),
            **changes,
        }
        model = peft.get_peft_model(self.plain_model(base), peft.LoraConfig(**arguments))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        model.save_pretrained(out)
        # Training keeps the factors in fp32; PEFT created these in the base's bf16.
        self.edit_weights(out, self._factors_in_fp32)
        return Path(out)

    @staticmethod
    def _factors_in_fp32(weights):
        return {k: v.float() if "lora_" in k else v for k, v in weights.items()}

    def merged_by_peft(self, base, adapter):
        """PEFT's own merge, in fp32."""
        model = peft.PeftModel.from_pretrained(self.plain_model(base, torch.float32), adapter)
        return model.merge_and_unload().state_dict()

    @staticmethod
    def open(base, *adapters, **options):
        checkpoint = open_checkpoint(base)
        opened = [WeightedAdapter(open_adapter(path, checkpoint, **options)) for path in adapters]
        return checkpoint, opened

    @staticmethod
    def merge(base, adapters, out, **options):
        if not isinstance(adapters, dict):
            adapters = {adapters: 1.0}
        checkpoint = open_checkpoint(base)
        opened = [
            WeightedAdapter(open_adapter(path, checkpoint), weight)
            for path, weight in adapters.items()
        ]
        return merge(checkpoint, opened, Path(out), MergeOptions(**options))

    @staticmethod
    def weights(folder):
        found = {}
        for file in Path(folder).glob("*.safetensors"):
            found.update(load_file(file))
        return found

    @staticmethod
    def digests(folder):
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir()}

    @staticmethod
    def edit_json(path, **changes):
        value = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))

    @staticmethod
    def edit_weights(folder, change):
        path = Path(folder) / "adapter_model.safetensors"
        weights = load_file(path)
        save_file(change(weights) or weights, path, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def lab():
    return Lab()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("export") / "base", **SIZES)


@pytest.fixture(scope="session")
def dense_base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("export") / "dense", format="bf16", **SIZES)


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, base, lab):
    return lab.adapter(base, tmp_path_factory.mktemp("export") / "adapter")


@pytest.fixture
def adapter_copy(adapter, tmp_path):
    """An adapter to damage."""
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


@pytest.fixture(scope="session")
def merged(base, adapter, tmp_path_factory, lab):
    out = tmp_path_factory.mktemp("merged") / "bf16"
    lab.merge(base, adapter, out)
    return out


@pytest.fixture(scope="session")
def several(base, tmp_path_factory, lab):
    """Three adapters by plain PEFT: two on everything, of two ranks, and one on attention alone."""
    folder = tmp_path_factory.mktemp("several")
    lab.adapter(base, folder / "support", seed=1, scale=0.3)
    ranks = {"r": 9, "lora_alpha": 9, "rank_pattern": {}, "alpha_pattern": {}}
    lab.adapter(base, folder / "sql", seed=2, scale=0.2, **ranks)
    lab.adapter(base, folder / "tone", seed=3, scale=0.3, r=2, target_parameters=None)
    return {name: folder / name for name in ("support", "sql", "tone")}


@pytest.fixture(scope="session")
def chosen(base, tmp_path_factory, lab):
    """An adapter on two of four experts of each layer: as trained, and padded as PEFT loads it."""
    folder = tmp_path_factory.mktemp("chosen")
    padded = lab.adapter(base, folder / "padded", seed=7, scale=0.3)
    experts, rank = 4, 3

    def factors(weights, *, keep_all):
        for name, factor in weights.items():
            if ".experts." not in name:
                continue
            held = CHOSEN[int(name.split(".layers.")[1].split(".")[0])]
            if "lora_A" in name:
                stack = factor.view(experts, rank, -1)
                others = [e for e in range(experts) if e not in held]
                stack[others] = 0
                weights[name] = factor if keep_all else stack[held].flatten(0, 1).contiguous()
            elif not keep_all:
                weights[name] = factor.view(-1, rank, experts)[..., held].flatten(1).contiguous()
        return weights

    compact = shutil.copytree(padded, folder / "compact")
    lab.edit_weights(padded, lambda weights: factors(weights, keep_all=True))
    lab.edit_weights(compact, lambda weights: factors(weights, keep_all=False))
    told = {str(layer): held for layer, held in CHOSEN.items()}
    lab.edit_json(compact / "adapter_config.json", chosen_experts=told)
    return compact, padded
