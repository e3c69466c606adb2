"""One model spread over two processes with FSDP2, held against the same run in one process.

The runs of the two ranks are in ``sharded_ranks.py``, started once for all tests.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptoss_tune.checkpoint import open_checkpoint
from gptoss_tune.errors import MachineError
from gptoss_tune.model.sharding import Share
from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.plan import plan
from gptoss_tune.recipe.plan_cards import CARDS
from gptoss_tune.testing import tiny_checkpoint
from gptoss_tune.train.run import train

LAYERS = 3
FACTORS = "adapter/adapter_model.safetensors"
MOVED = ["model.embeddings=cpu", "train.checkpointing=offload", "model.experts_precision=bf16"]
ONE_RANK = ["train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, rows):
    """The folder of all runs: ``one`` of one process, the others of two."""
    folder = tmp_path_factory.mktemp("sharded")
    # Three layers, or a gathered one and the next are all there is.
    base = tiny_checkpoint(
        folder / "base", seed=1, layers=LAYERS, experts=4, hidden=32, intermediate=64
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        "lora: {rank: 4, expert_rank: 2}\n"
        f"data: {{train: {rows}, max_length: 256}}\n"
        "train: {output_dir: unused, max_steps: 3, learning_rate: 5e-3, checkpointing: none}\n"
    )
    evaluated = [f"data.eval={rows}", "train.eval_steps=2", "train.save_steps=2"]
    train(load_recipe(recipe, [f"train.output_dir={folder / 'one'}", *ONE_RANK, *evaluated]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", port]
    command += [str(Path(__file__).with_name("sharded_ranks.py")), str(recipe), str(folder), *MOVED]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture(scope="module")
def seen(runs):
    return json.loads((runs / "results.json").read_text())


def figures(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "grad_norm", "eval_loss", "router_entropy", "trained_tokens")
    return [{name: line[name] for name in names if name in line} for line in lines]


def assert_same_adapter(run, reference):
    ours, theirs = load_file(run / FACTORS), load_file(reference / FACTORS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # fp32 sums over ranks in another order, and Adam divides by the gradient's size.
        torch.testing.assert_close(ours[name], tensor, rtol=2e-3, atol=2e-5, msg=name)


def test_losses_norms_evaluation_and_adapter_are_those_of_one_process(runs):
    ours, theirs = figures(runs / "fsdp2"), figures(runs / "one")
    assert len(ours) == len(theirs) == 7
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-6)
    assert_same_adapter(runs / "fsdp2", runs / "one")
    record = json.loads((runs / "fsdp2" / "run.json").read_text())
    assert record["status"] == "finished" and record["guard"]["updates_checked"] == 2


def test_a_checkpoint_of_one_process_is_continued_by_two_with_shares(runs):
    later = figures(runs / "one")[3:]  # after steps 1 and 2 and their evaluation
    for mine, other in zip(figures(runs / "continued"), later, strict=True):
        assert mine == pytest.approx(other, rel=1e-6)
    assert_same_adapter(runs / "continued", runs / "one")


def test_a_signal_to_one_rank_saves_a_checkpoint_that_one_process_continues(runs, seen, losses):
    """With dense experts, embeddings on the host and offload, which change no loss."""
    assert seen["code"] == 75
    (checkpoint,) = (runs / "stopped").glob("checkpoint-*")
    assert not (runs / "stopped" / "adapter").exists()
    again = [f"train.output_dir={runs / 'stopped'}", *MOVED, *ONE_RANK, "guard.check_steps=0"]
    train(load_recipe(runs / "recipe.yaml", again))
    steps = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 1 <= steps < 3
    expected = losses(runs / "one")
    assert losses(runs / "stopped") == pytest.approx(expected, rel=1e-6)
    assert_same_adapter(runs / "stopped", runs / "one")


def test_mixed_precision_is_that_of_a_whole_model_per_rank(seen):
    """The forward passes are the same operations on the same bits, so the loss is equal."""
    for rank in seen["bf16"]:
        loss, spread_loss = rank["losses"]
        assert loss == spread_loss
        assert max(rank["errors"].values()) < 1e-6
        assert rank["dtypes"] == ["torch.float32"]
    assert seen["bf16"][0]["losses"] != seen["bf16"][1]["losses"]


def test_a_rank_holds_its_share_and_gathers_few_layers(runs, seen):
    checkpoint = open_checkpoint(runs / "base")
    names = [name for name in checkpoint.names() if name.endswith(("_blocks", "_scales"))]
    total = sum(checkpoint.spec(name).nbytes for name in names)
    experts = total // LAYERS
    for rank in seen["memory"]:
        assert rank["at_rest"] == total // 2
        assert rank["after"] == rank["at_rest"]
        # The experts of the layer at work, and the buffer in which all of a layer is received.
        most = max(rank["computing"])
        assert total // 2 + experts <= most <= total // 2 + experts + rank["layer"]


def test_a_plan_knows_what_a_rank_holds(runs, seen):
    made = plan(load_recipe(runs / "recipe.yaml"), CARDS[-1], gpus=2, spread="fsdp2")
    for rank in seen["memory"]:
        assert rank["kinds"]["experts"] == made.memory.kinds["experts"]
        for kind in ("attention", "embeddings", "adapters"):
            assert rank["kinds"][kind] == pytest.approx(made.memory.kinds[kind], rel=0.01)


def test_the_guard_judges_shares_together(seen):
    still, sound, moved = (seen["guard"][name] for name in ("still", "sound", "moved"))
    assert all("got a gradient and did not move" in " ".join(lines) for lines in still)
    assert sound == [[], []]
    assert moved[0] == []
    (line,) = moved[1]
    assert "layers.1.mlp.experts" in line and line.endswith("is frozen and has changed")


def test_a_tensor_is_put_together_whatever_its_rows(seen):
    assert seen["whole"] == [True, True]


def test_experts_that_cannot_be_dealt_out_are_refused():
    assert Share(3, 4).of_experts(128) == (96, 128)
    with pytest.raises(MachineError, match=r"128 experts over 6 processes.*divide 128"):
        Share(0, 6).of_experts(128)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_losses_of_one(tmp_path, recipe_file, losses):
    configurations = Path(__file__).parents[2] / "recipes" / "accelerate"
    run = ["-m", "gptoss_tune.train", str(recipe_file), "model.dtype=bfloat16", ONE_RANK[1]]
    for name, file, ranks, rows in (("one", "one_gpu", 1, 2), ("two", "fsdp2", 2, 1)):
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--num_processes",
            f"{ranks}",
        ]
        command += ["--config_file", str(configurations / f"{file}.yaml"), *run]
        command += [f"train.output_dir={tmp_path / name}"]
        command += [f"train.per_device_train_batch_size={rows}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    # bf16 activations, summed in another order in kernels that do not promise one.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-2)
    ours, theirs = (load_file(tmp_path / name / FACTORS) for name in ("two", "one"))
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
