"""Kill merges to GGUF at random points and finish them; run by test_resume.py.

Each merge runs in a forked child of one process that has torch loaded. The kill falls after a
random number of steps and a random moment, so that most fall between or inside two tensors. Prints
one JSON object.
"""

import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import torch

from gptoss_tune.export.gguf.container import JOURNAL, GgufFiles
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.files.atomic import staging_folder
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter


def run(base, adapter, out, expert_format, size, progress=lambda done, total: None):
    checkpoint = open_checkpoint(base)
    opened = [WeightedAdapter(open_adapter(adapter, checkpoint))]
    options = MergeOptions(expert_format, max_shard_size=size, accept_loss=True)
    merge(checkpoint, opened, out, options, container=GgufFiles, progress=progress)


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def kill_one(generator, steps, base, adapter, out, expert_format, size, *, between):
    """Start a merge that is killed after a random step: at once, or a random moment later.

    It kills itself, or has the kernel do so: a signal of another process comes late on a busy
    machine. Of SIGALRM nobody hears either: it ends a process at once, as SIGKILL does.
    """
    wanted, moment = generator.randrange(1, steps - 1), generator.uniform(0.0001, 0.03)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        done = []

        def tell(bytes_done, total):
            done.append(bytes_done)
            if len(done) == wanted and between:
                os.kill(os.getpid(), signal.SIGKILL)
            elif len(done) == wanted:
                signal.setitimer(signal.ITIMER_REAL, moment)

        run(base, adapter, out, expert_format, size, tell)
        os._exit(0)
    os.waitpid(child, 0)


def main(base, adapter, work, expert_format, kills, size):
    torch.set_num_threads(1)
    work, generator, size = Path(work), random.Random(0), int(size)
    told = []
    reference = work / "reference" / "tuned"
    run(base, adapter, reference, expert_format, size, lambda done, total: told.append(done))
    expected = digest(reference)
    identical, interrupted, inside = 0, 0, 0
    for i in range(int(kills)):
        out = work / f"out{i}" / "tuned"
        kill_one(generator, len(told), base, adapter, out, expert_format, size, between=i % 2 == 0)
        interrupted += not out.exists()
        journal = staging_folder(out) / JOURNAL
        inside += journal.exists() and 0 < len(journal.read_text().splitlines()) < len(told) - 1
        if not out.exists():
            run(base, adapter, out, expert_format, size)
        identical += digest(out) == expected
    left = [p.name for folder in work.iterdir() for p in folder.glob(".*")]
    result = {
        "identical": identical,
        "interrupted": interrupted,
        "inside": inside,
        "files": len(expected),
        "left": left,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
