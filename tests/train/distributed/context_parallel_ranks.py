"""Runs of ``test_context_parallel.py`` on the ranks of one launch; writes nothing but the runs.

    torchrun --nproc_per_node N context_parallel_ranks.py RECIPE RUNS

``RUNS`` is a JSON list of pairs: whether FSDP2 spreads the model, and the overrides of a run.
"""

import json
import os
import sys

import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train


def main():
    for sharded, overrides in json.loads(sys.argv[2]):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
        os.environ["FSDP_VERSION"] = "2"
        train(load_recipe(sys.argv[1], overrides))
        if dist.is_initialized():
            dist.barrier()  # rank 0 sees the others leave before they come back


if __name__ == "__main__":
    main()
