"""Settings of every test process; a tiny base, a few rows, and a recipe that trains them."""

import json
import multiprocessing
import os
import socket
import sys

import pytest
import torch

from gptoss_tune.telemetry import switch_off_telemetry

# What a command does first; tests call what is below the commands.
switch_off_telemetry()
# Triton reads this when a kernel is defined, so it has to be set before anything imports triton;
# importing torch does not. Where there is a GPU the same tests run on it, compiled.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The suite runs one process per core.
torch.set_num_threads(1)

ROWS = [
    ("Capital of France?", "A city on the Seine.", "Paris"),
    ("2 + 2?", "Add them.", "4"),
    ("Opposite of hot?", "Temperature.", "cold, and in some ways icy"),
    ("Colour of grass?", "Plants hold chlorophyll, which reflects one colour.", "green"),
    ("First month?", "Calendars start here.", "January"),
    ("Legs of a spider?", "Arachnids.", "8"),
]


@pytest.fixture(scope="session")
def device():
    """Where a test's tensors go: a GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def two_layer_base(tmp_path_factory):
    """A tiny base in the released layout, for rooms that only need one to train."""
    from gptoss_tune.testing.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("two-layers") / "base"
    return tiny_checkpoint(folder, seed=1, layers=2, experts=4, hidden=64, intermediate=96)


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
  activation_checkpointing: none
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def recipe(recipe_file):
    """Return a function from overrides to the recipe."""
    from gptoss_tune.recipe import load_recipe

    return lambda *overrides: load_recipe(recipe_file, overrides)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Each run in one process starts as a process would: without another run's state."""
    yield
    state = sys.modules.get("accelerate.state")
    for name in ("AcceleratorState", "GradientState", "PartialState") if state else ():
        getattr(state, name)._reset_state()


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


@pytest.fixture
def losses():
    """Return a function from a run to the training losses in its metrics, by step."""

    def read(run):
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line) for line in lines]
        return {row["step"]: row["loss"] for row in logged if "loss" in row}

    return read


@pytest.fixture
def claim():
    """Claim a recipe's output folder, and let it go again."""
    from gptoss_tune.run import folder
    from gptoss_tune.run.lock import FolderLock

    def claimed(recipe):
        with FolderLock() as lock:
            return folder.claim(recipe.train, lock)

    return claimed


def pytest_collection_modifyitems(config, items):
    """Skip tests of kernels that cannot run here; deselect those that need a GPU."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if parameters.get("backend") == "triton" and not item.get_closest_marker("gpu"):
            item.add_marker("triton")
        if item.get_closest_marker("interpreter") and not interpreted:
            reason = "Triton's interpreter is off, and the tensors are on the CPU"
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker("triton") and not (interpreted or torch.cuda.is_available()):
            reason = "Triton's interpreter is off, and there is no GPU"
            item.add_marker(pytest.mark.skip(reason=reason))
    if torch.cuda.is_available():
        return
    needy = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=needy)
