"""Kill a merge with SIGKILL at random points and finish it; run as a script by test_resume.py.

Each merge runs in a forked child of one process that has torch loaded, so that twenty kills cost
seconds. Prints one JSON object.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.files.atomic import staging_folder
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter


def run(base, adapter, out, expert_format):
    checkpoint = open_checkpoint(base)
    opened = [WeightedAdapter(open_adapter(adapter, checkpoint))]
    options = MergeOptions(expert_format=expert_format, max_shard_size=30_000, accept_loss=True)
    merge(checkpoint, opened, out, options)


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def main(base, adapter, work, expert_format, kills):
    torch.set_num_threads(1)
    work, generator = Path(work), random.Random(0)
    start = time.perf_counter()
    run(base, adapter, work / "reference", expert_format)
    whole = time.perf_counter() - start
    expected = digest(work / "reference")
    identical, interrupted, kept = 0, 0, 0
    for i in range(int(kills)):
        out = work / f"out{i}"
        child = os.fork()
        if child == 0:
            run(base, adapter, out, expert_format)
            os._exit(0)
        time.sleep(generator.uniform(0.05, 1.0) * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += not out.exists()
        kept += any(staging_folder(out).glob("*.safetensors"))
        if not out.exists():
            run(base, adapter, out, expert_format)
        identical += digest(out) == expected
    left = [p.name for p in work.iterdir() if p.name.startswith(".")]
    print(
        json.dumps(
            {
                "identical": identical,
                "interrupted": interrupted,
                "kept_shards": kept,
                "files": len(expected),
                "left": left,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
