"""Merge speed and memory beside cp, on a checkpoint with the released tensor shapes.

    python tests/export/merge/merge_benchmark.py WORK [--layers 2] [--format bf16|mxfp4]

Writes a random base with gpt-oss-20b's shapes (hidden and intermediate 2880, 32 experts, 201,088
tokens) and an adapter of rank 16 on its last layer, copies the base with cp, merges, and prints
bytes, seconds and the peak of private memory of each. The page cache is warm for both.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter
from gptoss_tune.weights.adapter_targets import targets_of
from gptoss_tune.weights.names import ATTENTION_PROJECTIONS, EXPERT_PROJECTIONS


def write_adapter(base, out, layer, rank=16):
    """A random adapter on one layer, in PEFT's files."""
    out.mkdir()
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(ATTENTION_PROJECTIONS),
        "layers_to_transform": [layer],
        "target_parameters": [f"layers.{layer}.mlp.experts.{p}" for p in EXPERT_PROJECTIONS],
        "base_model_name_or_path": str(base.path),
    }
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for target in targets_of(config, base, "adapter").values():
        for part, shape in zip("AB", target.shapes, strict=True):
            values = torch.randn(shape, generator=generator) * 0.02
            weights[f"{target.key}.lora_{part}.weight"] = values
    save_file(weights, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps(config))


def in_child(work):
    """Run ``work`` in a forked child; return its seconds and the growth of its peak memory."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(write, json.dumps([seconds, grown / 2**20]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(os.read(read, 1000))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--format", choices=["bf16", "mxfp4"], default="mxfp4")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "base").exists():
        sizes = {"hidden": 2880, "intermediate": 2880, "experts": 32}
        code = (
            f"from gptoss_tune.testing.tiny import tiny_checkpoint as t; t({str(work / 'base')!r}, "
        )
        code += f"layers={arguments.layers}, **{sizes})"
        subprocess.run([sys.executable, "-c", code], check=True)
    base = open_checkpoint(work / "base")
    if not (work / "adapter").exists():
        write_adapter(base, work / "adapter", arguments.layers - 1)
    torch.set_num_threads(1)
    adapters = [WeightedAdapter(open_adapter(work / "adapter", base))]
    subprocess.run(["cat", *map(str, (work / "base").iterdir())], stdout=subprocess.DEVNULL)
    for name in ("copy", "nothing", "merged"):
        shutil.rmtree(work / name, ignore_errors=True)
    size = base.nbytes() / 1e9
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(work / "base"), str(work / "copy")], check=True)
    os.sync()
    copied = time.perf_counter() - start
    shutil.rmtree(work / "copy")
    print(f"cp -r and sync        {size:6.2f} GB {copied:7.1f} s {size / copied:6.2f} GB/s")
    options = MergeOptions(expert_format=base.expert_format)
    seconds, gib = in_child(lambda: merge(base, [], work / "nothing", options))
    print(
        f"merge without a delta {size:6.2f} GB {seconds:7.1f} s {size / seconds:6.2f} GB/s, "
        f"{copied / seconds:.0%} of cp, peak +{gib:.2f} GiB"
    )
    options = MergeOptions(expert_format=arguments.format, accept_loss=True)
    seconds, gib = in_child(lambda: merge(base, adapters, work / "merged", options))
    written = open_checkpoint(work / "merged").nbytes() / 1e9
    print(
        f"merge to {arguments.format:5}        {written:6.2f} GB {seconds:7.1f} s "
        f"{written / seconds:6.2f} GB/s, peak +{gib:.2f} GiB"
    )


if __name__ == "__main__":
    main()
