"""A tiny base, a few rows, and a recipe that trains them in seconds."""

import json
import multiprocessing
import os
import socket

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from gptoss_tune.recipe import load_recipe
from gptoss_tune.run import folder
from gptoss_tune.run.lock import FolderLock

ROWS = [
    ("Capital of France?", "A city on the Seine.", "Paris"),
    ("2 + 2?", "Add them.", "4"),
    ("Opposite of hot?", "Temperature.", "cold, and in some ways icy"),
    ("Colour of grass?", "Plants hold chlorophyll, which reflects one colour.", "green"),
    ("First month?", "Calendars start here.", "January"),
    ("Legs of a spider?", "Arachnids.", "8"),
]


@pytest.fixture(scope="session")
def base(two_layer_base):
    return two_layer_base


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer, "thinking": thought},
                ]
            }
        )
        for question, thought, answer in ROWS
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def recipe_file(tmp_path, base, rows):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
model:
  name_or_path: {base}
  dtype: float32
lora:
  rank: 4
  expert_rank: 2
data:
  train: {rows}
  max_length: 256
train:
  output_dir: {tmp_path / "run"}
  max_steps: 4
  per_device_train_batch_size: 2
  learning_rate: 5e-3
  checkpointing: none
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def recipe(recipe_file):
    """Return a function from overrides to the recipe."""
    return lambda *overrides: load_recipe(recipe_file, overrides)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Each run in one process starts as a process would: without another run's state."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def in_environment(environment, target, arguments):
    os.environ.update(environment)
    target(*arguments)


@pytest.fixture
def on_ranks():
    """Return a function that calls ``target(*arguments)`` on each rank of a new process group.

    The ranks are processes of their own, started by a server that has imported the libraries once.
    It returns their exit codes; those beyond the ``wait_for`` first are killed when these ended.
    """

    def run(ranks, target, *arguments, wait_for=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["gptoss_tune.train.run"])
        processes = []
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
            place |= {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in place.items()}
            processes.append(
                context.Process(target=in_environment, args=(environment, target, arguments))
            )
            processes[-1].start()
        for process in processes[:wait_for]:
            process.join(240)
        for process in processes[ranks if wait_for is None else wait_for :]:
            process.kill()
            process.join()
        return [process.exitcode for process in processes]

    return run


def losses(run):
    """Return the training losses in a run's metrics, by step."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in logged if "loss" in row}


@pytest.fixture(name="losses")
def losses_fixture():
    return losses


@pytest.fixture
def claim():
    """Claim a recipe's output folder, and let it go again."""

    def claimed(recipe):
        with FolderLock() as lock:
            return folder.claim(recipe, lock)

    return claimed
