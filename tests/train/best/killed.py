"""Train a recipe and be killed, or told to stop, at one place: ``killed.py RECIPE PLACE ...``.

The places are moments in which the best checkpoint and the count of evaluations could part.
"""

import os
import signal
import sys

from gptoss_tune.recipe import load_recipe
from gptoss_tune.run import checkpoints
from gptoss_tune.train import finish
from gptoss_tune.train.run import train
from gptoss_tune.train.trainer import MethodTrainer


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def stop(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def before(owner, name, when, act=die):
    original = getattr(owner, name)

    def changed(*args, **kwargs):
        if when(*args):
            act()
        return original(*args, **kwargs)

    setattr(owner, name, changed)


def after(owner, name, when, act=die):
    original = getattr(owner, name)

    def changed(*args, **kwargs):
        found = original(*args, **kwargs)
        if when(*args):
            act()
        return found

    setattr(owner, name, changed)


def at(step):
    return lambda trainer, *_: trainer.state.global_step == step


def named(name):
    return lambda *paths: paths[-1].name == name


PLACES = {
    "before the best evaluation": lambda: before(MethodTrainer, "_evaluate", at(3)),
    "after the best evaluation": lambda: after(MethodTrainer, "_evaluate", at(3)),
    "before the best is published": lambda: before(checkpoints, "publish", named("checkpoint-3")),
    "after the best save": lambda: after(checkpoints, "publish", named("checkpoint-3")),
    "in the rotation": lambda: before(checkpoints, "remove", named("checkpoint-2")),
    "after a save behind the best": lambda: after(checkpoints, "publish", named("checkpoint-4")),
    "after the last evaluation": lambda: after(MethodTrainer, "_evaluate", at(5)),
    "before the adapter": lambda: before(finish, "_publish", lambda *_: True),
    "after the adapter": lambda: after(finish, "_publish", lambda *_: True),
    "a signal in the best evaluation": lambda: before(
        MethodTrainer, "evaluation_loop", at(3), stop
    ),
    "a signal in the last evaluation": lambda: before(
        MethodTrainer, "evaluation_loop", at(5), stop
    ),
    "nowhere": lambda: None,
}

if __name__ == "__main__":
    recipe, place, *overrides = sys.argv[1:]
    PLACES[place]()
    try:
        train(load_recipe(recipe, overrides))
    except SystemExit:
        raise
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
