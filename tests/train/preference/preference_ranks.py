"""What each of two ranks does for ``test_ranks.py``: one start for all of its runs.

    preference_ranks.py FOLDER

Reads ``runs.json``: for each run its name, its recipe, whether it is spread, the folder of its
cache for each rank, and overrides. Writes ``ended.json``: how each ended, by rank.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from gptoss_tune.distributed import gather_over_ranks
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train

FOLDER = Path(sys.argv[1])


def run(name, recipe, sharded, caches, overrides):
    """Train into ``FOLDER/name``; return the error that ended it, or an empty text."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    rank = int(os.environ["RANK"])
    os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
    os.environ["FSDP_VERSION"] = "2"
    os.environ["XDG_CACHE_HOME"] = caches[rank]
    # Each is the first of its machine where they do not share a cache.
    os.environ["LOCAL_RANK"] = str(rank if caches[0] == caches[1] else 0)
    said = ""
    try:
        train(load_recipe(recipe, [f"train.output_dir={FOLDER / name}", *overrides]))
    except GptossTuneError as error:
        said = f"{type(error).__name__}: {error}"
    dist.barrier()  # rank 0 sees the others leave before they come back
    return said


def main():
    """Run everything and leave how it ended beside the runs."""
    wanted = json.loads((FOLDER / "runs.json").read_text())
    ended = {one[0]: gather_over_ranks(run(*one)) for one in wanted}
    if dist.get_rank() == 0:
        (FOLDER / "ended.json").write_text(json.dumps(ended))


main()
