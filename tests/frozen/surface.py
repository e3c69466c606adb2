"""What the frozen results are taken through: the project's names, its settings, its command line.

Every name of the project that may be moved or renamed stands in this file, once. A change of names
is carried over here and nowhere else in this folder.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN_MODULE = "gptoss_tune.train"

# Recipe keys that are used here, by a name that stays.
PROCESSES = "distributed.num_processes"
STRATEGY = "distributed.strategy"
CHECKPOINTING = "train.activation_checkpointing"
INIT_FROM = "lora.init_from"
MERGE_AWARE = "lora.merge_aware"

BASE = "runs/demo/base"
"""Where the base of every run lies in the working folder; the tiny recipes name it too."""
COMMON = {
    "model.name_or_path": BASE,
    "model.dtype": "float32",
    "lora.rank": 4,
    "lora.expert_rank": 2,
    "data.train": "rows.jsonl",
    "data.max_length": 256,
    "train.max_steps": 4,
    "train.per_device_train_batch_size": 2,
    "train.learning_rate": 5e-3,
    CHECKPOINTING: "none",
}
_HELD_OUT = {"data.eval": "eval.jsonl", "train.eval_steps": 2}
_ANSWERS = {
    "evaluation.prompts": "data/prompts/tiny.jsonl",
    "evaluation.max_prompts": 2,
    "evaluation.max_new_tokens": 6,
    "evaluation.drift.references": "eval.jsonl",
}
RUNS = {
    "unpacked": _HELD_OUT,
    "packed": {
        "data.packing": True,
        "data.max_length": 240,
        "train.per_device_train_batch_size": 1,
        "train.gradient_accumulation_steps": 2,
    },
    "merge_aware": {MERGE_AWARE: True},
    "bfloat16": {"model.dtype": "bfloat16", CHECKPOINTING: "full"},
    "dense_experts": {"model.experts_precision": "bf16", CHECKPOINTING: "selective"},
    "offload": {"model.embeddings": "cpu", CHECKPOINTING: "offload"},
    "from_adapter": {INIT_FROM: "runs/unpacked/adapter"},
    "answers": _ANSWERS,
    "whole": {"train.max_steps": 8, "train.save_steps": 2},
}
"""One process each, in this order."""
RESUMED = RUNS["whole"]
RANKS = {
    strategy: {PROCESSES: 2, STRATEGY: strategy, "train.per_device_train_batch_size": 1}
    for strategy in ("ddp", "fsdp2")
}

RENAMED = {}
"""Old text -> new text, laid over the frozen results before they are compared."""

_VOLATILE_KEY = re.compile(r"(_per_second|_runtime|seconds(_per_step)?|memory_gib|memory_bytes)$")
_VOLATILE_TEXT = (
    (re.compile(r"[\d.,]+ tok/s  [\d.]+ GiB"), "<n> tok/s  <n> GiB"),
    (re.compile(r"(done: \d+ steps) in [\d.]+ (s|min|h)\b"), r"\1 in <n> s"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"(site-packages/\S+\.py):\d+"), r"\1:<line>"),
)


def fixed_environment(work):
    """Settings of the process that takes results, and of its children."""
    for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    os.environ.update(
        PYTHONPATH=os.pathsep.join((str(ROOT / "src"), str(ROOT / "kernels"))),
        PYTHONHASHSEED="0",
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        COLUMNS="120",
        TERMINAL_WIDTH="120",
        NO_COLOR="1",
        TERM="dumb",
        LC_ALL="C.UTF-8",
        TZ="UTC",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(work / "hf"),
        XDG_CACHE_HOME=str(work / "cache"),
        TOKENIZERS_PARALLELISM="false",
    )
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "kernels")]


def machine():
    """What losses and bytes hold for."""
    from importlib.metadata import version

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    return {"torch": version("torch"), "cpu": names[0] if names else "unknown"}


def make_base():
    from gptoss_tune.testing.tiny import tiny_checkpoint

    Path(BASE).parent.mkdir(parents=True, exist_ok=True)
    tiny_checkpoint(BASE, seed=1, layers=2, experts=8, hidden=64, intermediate=96)


def rendered_rows(recipe, overrides, split):
    """Yield the rows of a split as training reads them."""
    from gptoss_tune.harmony.dataset.kinds import kind_of
    from gptoss_tune.harmony.dataset.load import load_dataset
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    vocabulary = load_vocabulary()
    yield from load_dataset(
        loaded.data,
        split=split,
        vocabulary=vocabulary,
        seed=loaded.train.seed,
        kind=kind_of(loaded.method),
    )


def _main():
    from gptoss_tune.cli import main

    main()


def run_cli(*arguments):
    """Run one command in this process; return its exit code and what it wrote, made comparable."""
    before, sys.argv = sys.argv, ["gptoss-tune", *arguments]
    ended = {"code": 0}
    with captured() as wrote:
        try:
            _main()
        except SystemExit as stop:
            ended["code"] = stop.code if stop.code is not None else 0
        except BaseException as error:
            ended = {"code": "exception", "exception": f"{type(error).__name__}: {error}"}
        finally:
            sys.argv = before
            _forget_accelerate()
    return {**ended, **{name: short(text) for name, text in wrote.items()}}


def _forget_accelerate():
    """Each run in this process starts as in a new one."""
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


@contextlib.contextmanager
def captured():
    """Catch what is written to both outputs, by this process or a child of it."""
    wrote, saved = {}, {number: os.dup(number) for number in (0, 1, 2)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush(), sys.stderr.flush()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, place in ((0, nothing), (1, out.fileno()), (2, err.fileno())):
            os.dup2(place, number)
        os.close(nothing)
        try:
            yield wrote
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            for number, place in saved.items():
                os.dup2(place, number)
                os.close(place)
            for name, file in (("stdout", out), ("stderr", err)):
                file.seek(0)
                wrote[name] = file.read().decode(errors="replace")


def run_process(*arguments):
    """Start a run as a process of its own."""
    command = [sys.executable, "-m", RUN_MODULE, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_on_two_ranks(recipe, *, sharded):
    """Train on two processes, as accelerate would start them; return exit code and errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", port, "-m", RUN_MODULE, recipe]
    how = {"ACCELERATE_USE_FSDP": str(sharded).lower(), "FSDP_VERSION": "2"}
    ended = subprocess.run(
        command, env={**os.environ, **how}, capture_output=True, text=True, timeout=600, check=False
    )
    said = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "stopped:"))]
    return {"code": ended.returncode, "said": plain("\n".join(said))}


def write_recipe(path, settings):
    """Write settings by dotted name as a recipe (JSON is YAML)."""
    nested = {}
    for dotted, value in settings.items():
        *sections, name = dotted.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    Path(path).write_text(json.dumps(nested, indent=1) + "\n", encoding="utf-8")


def plain(text):
    """Return a text without what differs from run to run or place to place."""
    today = datetime.datetime.now(datetime.UTC).date()
    days = [str(today - datetime.timedelta(days=back)) for back in (0, 1)]
    places = [(str(Path.cwd()), "<tmp>"), (tempfile.gettempdir(), "<tmp>"), (str(ROOT), "<repo>")]
    places += [(sys.prefix, "<python>"), (sys.base_prefix, "<python>")]
    places += [(str(Path.home()), "<home>"), (socket.gethostname(), "<host>")]
    for place, name in sorted(places, key=lambda each: -len(each[0])):
        text = text.replace(place, name) if len(place) > 3 else text
    for pattern, name in _VOLATILE_TEXT:
        text = pattern.sub(name, text)
    for day in days:
        text = text.replace(day, "<today>")
    return text


def short(text, longest=8000):
    """Return a text as lines, or the hash of a long one."""
    text = plain(text)
    if len(text) > longest:
        return {"sha256": sha256(text.encode()), "characters": len(text)}
    return text.split("\n")


def steady(value):
    """Return a JSON value with a mark in place of times, rates and memory."""
    if isinstance(value, dict):
        return {
            name: "<varies>" if _VOLATILE_KEY.search(name) else steady(each)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [steady(each) for each in value]
    return plain(value) if isinstance(value, str) else value


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def file_sha256(path):
    """Return the hash of a file; of a small text, without what differs from run to run."""
    data = path.read_bytes()
    if len(data) < 2_000_000:
        with contextlib.suppress(UnicodeDecodeError):
            data = plain(data.decode()).encode()
    return sha256(data)
