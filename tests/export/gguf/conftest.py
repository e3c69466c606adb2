"""Merges to GGUF, on a base whose tokenizer is small, so that its vocabulary is not the work."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss_tune.export.gguf.container import GgufFiles
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter
from gptoss_tune.weights.gguf.file import open_gguf


@pytest.fixture(scope="session")
def golden_cases():
    """The cases that were given to llama.cpp's converter, and the form of a listing."""
    file = Path(__file__).with_name("record_golden.py")
    spec = importlib.util.spec_from_file_location("record_golden", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden():
    return json.loads(Path(__file__).with_name("golden.json").read_text())


def _with_small_tokenizer(folder, out):
    """A copy whose tokenizer has the bytes, a few merges and the special tokens."""
    shutil.copytree(folder, out)
    file = out / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    model = tokenizer["model"]
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"][:40]]
    model["merges"] = [m for m in merges if all(len(part) == 1 for part in m)]
    merged = {"".join(m) for m in model["merges"]}
    words = [word for word in model["vocab"] if len(word) == 1 or word in merged]
    # Numbered without a gap, as the library tokenizers numbers what is added to them.
    model["vocab"] = {word: number for number, word in enumerate(words)}
    for number, added in enumerate(tokenizer["added_tokens"], len(words)):
        added["id"] = number
    file.write_text(json.dumps(tokenizer, ensure_ascii=False))
    return out


class Gguf:
    """What the tests of this folder do again and again."""

    @staticmethod
    def options(**options):
        return MergeOptions(**{"max_shard_size": 45_000_000_000, **options})

    def merge(self, base, adapters, out, *, progress=None, inspect=None, **options):
        checkpoint = open_checkpoint(base, translate=True)
        adapters = adapters if isinstance(adapters, dict) else {adapters: 1.0} if adapters else {}
        opened = [WeightedAdapter(open_adapter(p, checkpoint), w) for p, w in adapters.items()]
        hooks = {"progress": progress, "inspect": inspect}
        hooks = {name: hook for name, hook in hooks.items() if hook is not None}
        return merge(
            checkpoint, opened, Path(out), self.options(**options), container=GgufFiles, **hooks
        )

    @staticmethod
    def values(place):
        """Every tensor as fp32, by the codecs of the library gguf."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        model, found = open_gguf(Path(place)), {}
        for name, entry in model.tensors.items():
            rows = np.frombuffer(model.read_rows(name, 0, entry.shape[0]), np.uint8)
            kind = GGMLQuantizationType[entry.type]
            data = rows.reshape(*entry.shape[:-1], -1)
            values = data.view("float32") if entry.type == "F32" else dequantize(data, kind)
            found[name] = torch.from_numpy(values.copy()).reshape(entry.shape)
        return found


@pytest.fixture(scope="session")
def gguf():
    return Gguf()


@pytest.fixture(scope="session")
def light(base, tmp_path_factory):
    """The packed base of the exports' tests, with a small tokenizer."""
    return _with_small_tokenizer(base, tmp_path_factory.mktemp("light") / "base")


@pytest.fixture(scope="session")
def light_dense(dense_base, tmp_path_factory):
    """The dense base of the exports' tests, with a small tokenizer."""
    return _with_small_tokenizer(dense_base, tmp_path_factory.mktemp("light") / "dense")


@pytest.fixture(scope="session")
def packed_gguf(light, adapter, gguf, tmp_path_factory):
    """Base + adapter, experts MXFP4: the folder and its report."""
    out = tmp_path_factory.mktemp("gguf") / "tuned"
    return out, gguf.merge(light, adapter, out, expert_format="mxfp4", accept_loss=True)
