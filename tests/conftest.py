"""Settings of every test process; a tiny base, a few rows, and a recipe that trains them."""

import gc
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

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

TESTS = Path(__file__).parent
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
    return tiny_checkpoint(folder, seed=1, layers=2, experts=4, hidden=32, intermediate=64)


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


@pytest.fixture(scope="session")
def write_recipe(base, rows):
    """Return a function that writes a recipe into a folder, beside where its run will be."""

    def write(folder):
        path = folder / "recipe.yaml"
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
  output_dir: {folder / "run"}
  max_steps: 4
  per_device_train_batch_size: 2
  learning_rate: 5e-3
  activation_checkpointing: none
""",
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture
def recipe_file(write_recipe, tmp_path):
    return write_recipe(tmp_path)


@pytest.fixture
def recipe(recipe_file):
    """Return a function from overrides to the recipe."""
    from gptoss_tune.recipe import load_recipe

    return lambda *overrides: load_recipe(recipe_file, overrides)


@pytest.fixture
def randomise_adapters():
    """Give every A and B values, as a run would have; PEFT starts B at zero."""

    def randomise(model, seed=5, scale=0.5):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "lora_" in name:
                    values = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(scale * values / parameter.shape[-1] ** 0.5)

    return randomise


@pytest.fixture
def small_model():
    """Make a two-layer model with a window of 8 and 97 words, adapted, ready to train."""
    from transformers import GptOssConfig

    from gptoss_tune.model.causal_lm import GptOssForTuning
    from gptoss_tune.model.expert_weight import ExpertWeight
    from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION
    from gptoss_tune.model.lora import add_adapters
    from gptoss_tune.recipe import LoraSection

    def make(seed=0, adapted=True, dtype=torch.float32):
        torch.manual_seed(seed)
        config = GptOssConfig(
            num_hidden_layers=2,
            num_local_experts=6,
            num_experts_per_tok=2,
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            use_cache=False,
        )
        model = GptOssForTuning._from_config(config, experts_implementation=EXPERTS_IMPLEMENTATION)
        for name, parameter in model.named_parameters():
            wide = any(word in name for word in ("embed", "norm", "sinks"))
            std = 1.0 if "embed" in name else 0.5 if wide else 0.1
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=std)
        for layer in model.model.layers:
            for name in ("gate_up_proj", "down_proj"):
                weight = ExpertWeight(getattr(layer.mlp.experts, name).data.to(dtype), dtype)
                packed = torch.nn.Parameter(weight, requires_grad=False)
                setattr(layer.mlp.experts, name, packed)
        model.requires_grad_(False)
        if adapted:
            model = add_adapters(model, LoraSection(rank=4))
        for parameter in model.parameters():
            if not isinstance(parameter, ExpertWeight):
                parameter.data = parameter.data.to(dtype)
        return model

    return make


@pytest.fixture(autouse=True)
def modules_beside_scripts():
    """A command run in this process asks its children to import nothing from where they stand."""
    before = os.environ.get("PYTHONSAFEPATH")
    yield
    if before is None:
        os.environ.pop("PYTHONSAFEPATH", None)
    else:
        os.environ["PYTHONSAFEPATH"] = before


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Each run in one process starts as a process would: without another run's state."""
    yield
    state = sys.modules.get("accelerate.state")
    for name in ("AcceleratorState", "GradientState", "PartialState") if state else ():
        getattr(state, name)._reset_state()


def in_environment(environment, target, arguments):
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_on_ranks(ranks, target, *arguments, environment=()):
    """Start ``target(*arguments)`` on each rank of a new process group; return the processes.

    They are processes of their own, forked from a server that has imported the libraries once.
    """
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gptoss_tune.train.run"])
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
        place |= {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place = {name: str(value) for name, value in place.items()} if ranks > 1 else {}
        body = ({**os.environ, **place, **dict(environment)}, target, arguments)
        processes.append(context.Process(target=in_environment, args=body))
        processes[-1].start()
    return processes


@pytest.fixture
def on_ranks():
    """Return a function that calls ``target(*arguments)`` on each rank of a new process group.

    It returns their exit codes; those beyond the ``wait_for`` first are killed when these ended.
    """

    def run(ranks, target, *arguments, wait_for=None):
        processes = start_on_ranks(ranks, target, *arguments)
        for process in processes[:wait_for]:
            process.join(240)
        for process in processes[ranks if wait_for is None else wait_for :]:
            process.kill()
            process.join()
        return [process.exitcode for process in processes]

    return run


def as_python(command, folder, log):
    """Be ``python *command`` in this process: a module, code, or a script with its arguments."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(folder)
    first, *rest = command
    sys.argv = [first, *rest] if first not in ("-m", "-c") else ["-c", *rest[1:]]
    if first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(first))
        runpy.run_path(first, run_name="__main__")


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory):
    """Return a function that runs a Python command on each of some ranks, as ``torchrun`` would.

    For tests in which a process has to be new, but not its imports: those are shared, which saves
    most of the time that a start takes. Returns what ``subprocess.run`` would, over all ranks.
    """

    def run(command, ranks=1, cwd=".", timeout=300, **environment):
        log = tmp_path_factory.mktemp("forked") / "log"
        words = [str(word) for word in command]
        environment = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", **environment}
        processes = start_on_ranks(
            ranks, as_python, words, os.path.abspath(cwd), str(log), environment=environment
        )
        for process in processes:
            process.join(timeout)
        late = [process for process in processes if process.exitcode is None]
        for process in late:
            process.kill()
        said = [log.with_name(f"log.{name}").read_text() for name in ("out", "err")]
        assert not late, f"no end after {timeout} s: {said}"
        code = max((process.exitcode for process in processes), key=abs)
        return subprocess.CompletedProcess(words, code, *said)

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
    from gptoss_tune.run import start
    from gptoss_tune.run.lock import FolderLock

    def claimed(recipe):
        with FolderLock() as lock:
            return start.claim(recipe.train, lock)

    return claimed


def pytest_collection_finish(session):
    """Libraries stay: leave their million objects out of every later garbage collection."""
    gc.collect()
    gc.freeze()


# Files that take longest go first, so that no worker is left with one of them at the end.
LONGEST = [
    "train/test_run.py",
    "security/test_watched.py",
    "train/distributed/test_processes.py",
    "train/distributed/test_sharded.py",
    "train/distributed/test_signals.py",
    "kernels/test_compile.py",
    "kernels/experts/test_experts.py",
    "run/test_card.py",
    "train/metrics/test_trackers.py",
    "train/test_find_batch_size.py",
    "model/bytes/test_plan_vs_measured.py",
    "workflows/test_cluster_jobs.py",
    "bench/test_lease.py",
    "faults/test_faults.py",
    "model/test_activation_checkpointing.py",
    "train/test_errors_people_meet.py",
    "export/verify/test_verify.py",
    "train/data/test_token_counts.py",
]


def pytest_collection_modifyitems(config, items):
    """Skip tests of kernels that cannot run here; deselect those that need a GPU."""
    place = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
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


@pytest.fixture(scope="session")
def transformers_serve():
    """Return a context that serves a folder by transformers' own server; it gives the URL."""
    main = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    @contextmanager
    def serve(model):
        port = free_port()
        command = [*main, "serve", str(model), "--host", "127.0.0.1", "--port", port]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, "--device", "cpu"], env=environment, **silent)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(400):
                assert process.poll() is None, "the server ended"
                with suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=2).close()
                    break
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)

    return serve
