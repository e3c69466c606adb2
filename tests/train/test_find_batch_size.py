"""Out of memory, for real: the address space of a process is limited, and an allocation fails."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from rich.console import Console
from safetensors.torch import load_file

from gptoss_tune import error_hints
from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.recipe import load_recipe
from gptoss_tune.run.start import Start
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.distributed.context_groups import ContextGroups
from gptoss_tune.train.memory import find_batch_size, out_of_memory
from gptoss_tune.train.methods import METHODS
from gptoss_tune.train.run import train

# Of the bytes that a process may add, those with which so many rows are found to fit; measured on a
# CPU with torch 2.13: 2 rows do from 300 to 350 MiB on, 4 from 650 to 800, 8 from 800 to 900.
FITS_4, FITS_2, FITS_1 = 700 << 20, 450 << 20, 115 << 20
AUTOMATIC = "train.auto_find_batch_size=true"

# Runs the training, with the address space of one rank limited once the model is loaded.
LIMITED = """
import os, resource, sys
import torch
from gptoss_tune.train import __main__
from gptoss_tune.train.memory import find_batch_size
torch.set_num_threads(1)
real = find_batch_size.fit
def limited(*arguments):
    before = resource.getrlimit(resource.RLIMIT_AS)
    random_state = torch.get_rng_state()
    if os.environ.get("RANK") == os.environ.get("LIMITED_RANK"):
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + int(os.environ["ROOM"])
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    found = real(*arguments)
    if found.probed:
        resource.setrlimit(resource.RLIMIT_AS, before)
        print("random state kept:", torch.equal(random_state, torch.get_rng_state()))
    return found
find_batch_size.fit = limited
__main__.main()
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return a recipe's file: experts so wide that a row's activations outweigh all else."""
    folder = tmp_path_factory.mktemp("wide")
    base = tiny_checkpoint(
        folder / "base", seed=1, layers=2, experts=4, hidden=64, intermediate=1024
    )
    rows = []
    for number in range(16):
        question = f"word{number} " * (175 - 5 * number)
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "yes"},
        ]
        rows.append(json.dumps({"messages": messages}) + "\n")
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        f"""
model: {{name_or_path: {base}, dtype: float32}}
lora: {{rank: 4, expert_rank: 2}}
data: {{train: {folder / "rows.jsonl"}, max_length: 512}}
train:
  output_dir: {folder / "run"}
  max_steps: 2
  learning_rate: 5e-3
  activation_checkpointing: none
""",
        encoding="utf-8",
    )
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def configured(wide):
    """The run with 4 rows in a micro-batch and 8 in a step, asked for as such."""
    run = wide.parent / "configured"
    train(load_recipe(wide, overrides(run, 4, 2)))
    return run


def overrides(run, rows, batches, *more):
    return [
        f"train.output_dir={run}",
        f"train.per_device_train_batch_size={rows}",
        f"train.gradient_accumulation_steps={batches}",
        *more,
    ]


@pytest.mark.slow
@needs_proc
def test_a_halved_micro_batch_is_the_run_that_was_configured_so(
    wide, forked_python, losses, tmp_path
):
    run = tmp_path / "run"
    # A process of its own: what this one ran before decides how much its heap has free.
    wanted = overrides(run, 8, 1, AUTOMATIC)
    ended = forked_python(["-c", LIMITED, wide, *wanted], ROOM=str(FITS_4))
    assert ended.returncode == 0, ended.stderr
    assert "random state kept: True" in ended.stdout
    record = json.loads((run / "run.json").read_text())
    found = record["micro_batch"]
    rows = found["per_device_train_batch_size"]
    # 4, or 2 where the address space is in pieces.
    assert rows in (4, 2) and found["gradient_accumulation_steps"] * rows == found["asked"] == 8
    assert record["recipe"]["train"]["per_device_train_batch_size"] == 8
    same = tmp_path / "configured"
    train(load_recipe(wide, overrides(same, rows, 8 // rows)))
    assert losses(run) == losses(same) and len(losses(run)) == 2
    expected = load_file(same / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(run / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
@needs_proc
def test_all_ranks_halve_when_one_has_no_room(wide, configured, forked_python, losses, tmp_path):
    run = tmp_path / "run"
    wanted = overrides(run, 4, 1, AUTOMATIC)
    room = {"ROOM": str(FITS_2), "LIMITED_RANK": "1"}
    ended = forked_python(["-c", LIMITED, wide, *wanted], ranks=2, **room)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((run / "run.json").read_text())
    found = record["micro_batch"]
    rows = found["per_device_train_batch_size"]
    # 2, or 1 where the address space is in pieces; the same on both ranks.
    assert rows in (2, 1) and found["gradient_accumulation_steps"] * rows == found["asked"] == 4
    assert losses(run) == pytest.approx(losses(configured), rel=2e-5)


@pytest.mark.slow
@needs_proc
def test_one_rank_out_of_memory_in_a_step_ends_the_run_with_one_message(
    wide, forked_python, tmp_path
):
    wanted = overrides(tmp_path / "run", 4, 1)
    room = {"ROOM": str(FITS_1), "LIMITED_RANK": "1"}
    ended = forked_python(["-c", LIMITED, wide, *wanted], ranks=2, **room)
    assert ended.returncode != 0
    assert ended.stderr.count("error: out of memory on the host of rank 1: ") == 1
    assert "can't allocate memory" in ended.stderr
    assert "train.per_device_train_batch_size=1 train.gradient_accumulation_steps=4" in ended.stderr
    assert "train.auto_find_batch_size=true" in ended.stderr


def test_a_row_that_does_not_fit_stops_before_the_first_step(wide, tmp_path, monkeypatch):
    # More than an address space holds is set aside for the optimizer.
    monkeypatch.setattr(find_batch_size, "_spare_bytes", lambda *arguments: 1 << 50)
    recipe = load_recipe(wide, overrides(tmp_path / "run", 2, 1, AUTOMATIC))
    with pytest.raises(MachineError, match="out of memory on the host") as caught:
        train(recipe)
    assert "train.activation_checkpointing=full" in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("rows, smaller", [(2, 1), (8, 4), (6, 3), (9, 3), (7, 1), (35, 7)])
def test_the_product_stays_for_odd_sizes(rows, smaller):
    assert find_batch_size.next_smaller(rows) == smaller
    assert rows % smaller == 0


def test_a_continued_run_starts_with_what_it_used(tmp_path):
    (tmp_path / "run.json").write_text('{"micro_batch": {"per_device_train_batch_size": 2}}')

    state = PartialState(cpu=True)

    def used(asked, checkpoint):
        return find_batch_size._used_before(Start(tmp_path, checkpoint, (), "run"), asked, state)

    assert used(8, tmp_path / "checkpoint-2") == 2
    # Another product of rows and processes than before: nothing of it can be kept.
    assert used(3, tmp_path / "checkpoint-2") == 3
    assert used(8, None) == 8


def test_a_model_in_shares_is_refused(wide, tmp_path):
    recipe = load_recipe(wide, overrides(tmp_path, 8, 1, AUTOMATIC))
    context = RunContext(
        recipe=recipe,
        command=(),
        start=Start(tmp_path, None, (), "run"),
        base=None,
        state=PartialState(cpu=True),
        parallelism="fsdp2",
        groups=ContextGroups(),
        console=Console(),
        stop=None,
        watch=None,
        started=0.0,
    )
    with pytest.raises(RecipeError, match=r"accelerate/ddp\.yaml"):
        find_batch_size.fit(context, METHODS["sft"](None, None), None, None)


@pytest.mark.parametrize(
    "error, full",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_full_memory(error, full):
    assert error_hints.is_out_of_memory(error) is full


def test_the_message_names_the_checkpoint_that_is_kept(wide, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    recipe = load_recipe(wide, overrides(tmp_path, 8, 1))
    said = error_hints.allocators_words(
        RuntimeError("CUDA out of memory. Tried 2 GiB. If reserved but unallocated memory is large")
    )
    text = out_of_memory.describe(said, recipe, "ddp")
    assert f"{tmp_path / 'checkpoint-2'} is kept" in text
    assert "If reserved" not in text


@pytest.mark.gpu
def test_a_full_gpu_halves_the_micro_batch(wide, tmp_path, monkeypatch):
    """The allocator is given room for 4 rows, which the run then trains."""
    real = find_batch_size.fit

    def limited(context, method, model, dataset):
        peaks = {}
        for rows in (4, 8):
            torch.cuda.reset_peak_memory_stats()
            assert find_batch_size._try_step(context, method, model, dataset, rows, 0) is None
            peaks[rows] = torch.cuda.max_memory_reserved()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((peaks[4] + peaks[8]) / 2 / total)
        return real(context, method, model, dataset)

    monkeypatch.setattr(find_batch_size, "fit", limited)
    run = tmp_path / "run"
    try:
        train(load_recipe(wide, overrides(run, 8, 1, AUTOMATIC)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    record = json.loads((run / "run.json").read_text())
    assert record["micro_batch"]["per_device_train_batch_size"] == 4
