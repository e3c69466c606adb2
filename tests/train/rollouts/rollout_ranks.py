"""What each of two ranks does for ``test_ranks.py``: one start for all of its runs.

    rollout_ranks.py RECIPE FOLDER

Trains ``two`` from start to end; then ``stopped``, which the second rank's signal ends in the
rollouts of its second phase, and goes on with it.
"""

import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from gptoss_tune.errors import RunInterrupted
from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.train.run import train

RECIPE, FOLDER = sys.argv[1], Path(sys.argv[2])


def run(name):
    """Train into ``FOLDER/name``; return whether a signal stopped it."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    recipe = load_recipe(RECIPE, [f"train.output_dir={FOLDER / name}"])
    try:
        train(recipe, environment="lucky:Luck")
    except RunInterrupted as error:
        # A process runs once; the next run in this one is not to find that this one's ranks left.
        signs = dist.PrefixStore("ranks", dist.distributed_c10d._get_default_store())
        dist.barrier()
        signs.delete_key(str(dist.get_rank()))
        (FOLDER / f"said-{dist.get_rank()}").write_text(str(error))
        return True
    finally:
        dist.barrier()
    return False


def stop_in_second_phase(original):
    """Return a ``sample`` that asks the second rank to stop once two steps are made."""

    def sample(self, requests, temperature, should_stop=lambda: False):
        if self.version == 2 and temperature and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, requests, temperature, should_stop)

    return sample


assert not run("two")
plain = OwnSampler.sample
OwnSampler.sample = stop_in_second_phase(plain)
assert run("stopped")
OwnSampler.sample = plain
assert not run("stopped")
