"""What each of two ranks does for ``test_choosing_ranks.py``: one start for all of its runs.

    choosing_ranks.py FOLDER

Reads ``runs.json``: for each run its name, its recipe, whether it is spread, its cache, overrides.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train

FOLDER = Path(sys.argv[1])

for name, recipe, sharded, cache, overrides in json.loads((FOLDER / "runs.json").read_text()):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    os.environ |= {"ACCELERATE_USE_FSDP": str(sharded).lower(), "FSDP_VERSION": "2"}
    os.environ["XDG_CACHE_HOME"] = cache
    train(load_recipe(recipe, [f"train.output_dir={FOLDER / name}", *overrides]))
    dist.barrier()  # rank 0 sees the others leave before they come back
