"""One model spread over two processes with FSDP2, held against the same run in one process.

The runs of the two ranks are in ``sharded_ranks.py``, started once for all tests.
"""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_tune.errors import GuardError, MachineError
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.parallel.sharding import Share
from gptoss_tune.plan.gpus import GPUS
from gptoss_tune.plan.plan import plan
from gptoss_tune.recipe import load_recipe
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.run import train
from gptoss_tune.weights import open_checkpoint

pytestmark = pytest.mark.slow

LAYERS, EXPERTS = 3, 8
FACTORS = "adapter/adapter_model.safetensors"
MOVED = [
    "model.embeddings=cpu",
    "train.activation_checkpointing=offload",
    "model.experts_precision=bf16",
]
PACKED = ["model.linear_precision=int8", "model.head_precision=int8"]
POISONED = (4, 5)
"""Rows, from 0, that meet NaN: in step 1, not in step 2, and one of them each in steps 3 and 4."""
ONE_RANK = ["train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, rows):
    """The folder of all runs: ``one`` and ``nan-one`` of one process, the others of two."""
    folder = tmp_path_factory.mktemp("sharded")
    # Three layers, or a gathered one and the next are all there is.
    base = tiny_checkpoint(
        folder / "base", seed=1, layers=LAYERS, experts=EXPERTS, hidden=32, intermediate=64
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        "lora: {rank: 4, expert_rank: 2}\n"
        f"data: {{train: {rows}, max_length: 256}}\n"
        "train: {output_dir: unused, max_steps: 3, learning_rate: 5e-3, "
        "activation_checkpointing: none}\n"
    )
    asked = questions(folder, rows)
    held_out = [f"data.eval={rows}", "train.eval_steps=2", "train.save_steps=2"]
    poisoned = [
        f"model.name_or_path={poison(folder, recipe)}",
        "train.max_steps=4",
        "guard.max_nonfinite_steps=1",
    ]
    (folder / "overrides.json").write_text(json.dumps([MOVED, held_out, asked, poisoned, PACKED]))
    one = [f"train.output_dir={folder / 'one'}", *ONE_RANK]
    train(load_recipe(recipe, [*one, *held_out, *asked]))
    train(
        load_recipe(
            recipe, [f"train.output_dir={folder / 'int8-one'}", *ONE_RANK, *held_out, *PACKED]
        )
    )
    with pytest.raises(GuardError):
        train(load_recipe(recipe, [f"train.output_dir={folder / 'nan-one'}", *ONE_RANK, *poisoned]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", port]
    command += [str(Path(__file__).with_name("sharded_ranks.py")), str(recipe), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def questions(folder, rows):
    """Return the overrides of an evaluation that answers, grades and measures the drift."""
    prompts = folder / "prompts.jsonl"
    lines = [{"prompt": "Why? " * n, "pattern": "a"} for n in (1, 9, 3)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        f"evaluation.prompts={prompts}",
        "evaluation.max_new_tokens=3",
        "evaluation.batch_size=2",
        f"evaluation.drift.references={rows}",
        "evaluation.drift.max_references=3",
    ]


def poison(folder, recipe):
    """Copy the base, with NaN in the embeddings of a token that one row alone holds, for each."""
    base, copy = folder / "base", folder / "poisoned"
    data = load_recipe(recipe, []).data
    found = load_dataset(data, split="train", vocabulary=load_vocabulary(base))
    ids = [set(row["input_ids"]) for row in found]
    tokens = [min(ids[row].difference(*ids[:row], *ids[row + 1 :])) for row in POISONED]
    shutil.copytree(base, copy)
    (path,) = copy.glob("*.safetensors")
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][tokens] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    return copy


@pytest.fixture(scope="module")
def seen(runs):
    return json.loads((runs / "results.json").read_text())


def figures(run):
    """Return what was logged but for times and rates; NaN for a loss that JSON cannot hold."""
    names = ("step", "loss", "grad_norm", "router_entropy", "trained_tokens", "skipped_steps")
    timed = ("_runtime", "_per_second")
    return [
        {
            name: math.nan if value is None else value
            for name, value in json.loads(line).items()
            if name in names or (name.startswith("eval_") and not name.endswith(timed))
        }
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def assert_same_figures(ours, theirs):
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        # fp32 sums over ranks in another order; the divergence is a difference of near equals.
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-9, nan_ok=True)


def assert_same_adapter(run, reference):
    ours, theirs = load_file(run / FACTORS), load_file(reference / FACTORS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # fp32 sums over ranks in another order, and Adam divides by the gradient's size.
        torch.testing.assert_close(ours[name], tensor, rtol=2e-3, atol=2e-5, msg=name)


def layer_lines(run):
    return [json.loads(line) for line in (run / "layers.jsonl").read_text().splitlines()]


def test_losses_norms_evaluations_and_adapter_are_those_of_one_process(runs):
    ours, theirs = figures(runs / "fsdp2"), figures(runs / "one")
    assert len([line for line in ours if "loss" in line]) == 3
    assert len([line for line in ours if "eval_loss" in line]) == 2
    assert_same_figures(ours, theirs)
    assert_same_adapter(runs / "fsdp2", runs / "one")
    record = json.loads((runs / "fsdp2" / "run.json").read_text())
    assert record["status"] == "finished" and record["guard"]["updates_checked"] == 2


def test_experts_of_a_spread_model_see_tiles_and_learn_the_same(runs):
    ours, theirs = figures(runs / "tiles"), figures(runs / "one")
    assert len([line for line in ours if "loss" in line]) == 3
    assert_same_figures(ours, theirs)
    mine, other = load_file(runs / "tiles" / FACTORS), load_file(runs / "one" / FACTORS)
    for name, tensor in other.items():
        # Measured 9.3e-5: one value of 2,048, whose gradient is near zero, moves by 0.5 %.
        assert (mine[name] - tensor).norm() <= 5e-4 * tensor.norm(), name


@pytest.mark.parametrize("way", ["int8", "int8-host", "int8-ddp"])
def test_weights_in_int8_are_spread_and_copied_as_others_are(runs, way):
    """Two of the three have their ``lm_head`` on the host, which changes no number."""
    ours, theirs = figures(runs / way), figures(runs / "int8-one")
    assert len([line for line in ours if "loss" in line]) == 3
    assert_same_figures(ours, theirs)
    assert_same_adapter(runs / way, runs / "int8-one")
    whole = [line["loss"] for line in figures(runs / "one") if "loss" in line]
    rounded = [line["loss"] for line in theirs if "loss" in line]
    assert rounded != pytest.approx(whole, rel=1e-6) and rounded == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("step", [0, 3])
def test_answers_of_a_spread_model_are_those_of_one_process(runs, step):
    ours, theirs = (
        json.loads((runs / run / "evaluation" / f"step-{step}.json").read_text())
        for run in ("fsdp2", "one")
    )
    assert len(ours["samples"]) == 3 and ours["graded"]["total"] == 3
    assert {**ours, "drift": None} == {**theirs, "drift": None}
    assert (ours["drift"]["kl"] > 0) == (step > 0)
    assert ours["drift"]["kl"] == pytest.approx(theirs["drift"]["kl"], rel=1e-4)
    assert ours["drift"]["kl_tokens"] == theirs["drift"]["kl_tokens"]


def test_layers_of_a_spread_model_are_those_of_one_process(runs):
    ours, theirs = layer_lines(runs / "fsdp2"), layer_lines(runs / "one")
    assert [line["step"] for line in ours] == [1, 2, 3]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["expert_load"] == other["expert_load"]
        assert len(set(mine["expert_load"][0])) > 1, "all experts got the same: nothing is shown"
        for kind in ("attention", "experts"):
            assert mine["grad_norm"][kind] == pytest.approx(other["grad_norm"][kind], rel=1e-4)


def test_layers_of_two_copies_are_those_of_one_process(runs):
    """With a line of metrics every second step: the first step's load has a line of its own."""
    (first, second, last), theirs = layer_lines(runs / "ddp"), layer_lines(runs / "one")
    assert first == {"step": 1, "expert_load": theirs[0]["expert_load"], "load_steps": 1}
    both = [torch.tensor(line["expert_load"]) for line in theirs[:2]]
    assert second["expert_load"] == sum(both).tolist() and second["load_steps"] == 2
    assert last["expert_load"] == theirs[2]["expert_load"]
    for kind in ("attention", "experts"):
        for mine, other in ((second, theirs[1]), (last, theirs[2])):
            assert mine["grad_norm"][kind] == pytest.approx(other["grad_norm"][kind], rel=1e-4)


def test_a_checkpoint_of_one_process_is_continued_by_two_with_shares(runs):
    later = [line for line in figures(runs / "one") if line["step"] == 3]
    later = [line for line in later if "eval_kl" not in line]
    assert_same_figures(figures(runs / "continued"), later)
    assert_same_adapter(runs / "continued", runs / "one")


def test_a_signal_to_one_rank_saves_a_checkpoint_that_one_process_and_two_continue(
    runs, seen, losses
):
    """With dense experts, embeddings on the host and offload, which change no loss."""
    for name, code, said in seen["interrupted"]:
        assert (name, code) == ("RunInterrupted", 75)
        assert "is complete, the same command continues from it" in said
    assert [path.name for path in (runs / "stopped").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (runs / "stopped" / "adapter").exists()
    again = [f"train.output_dir={runs / 'stopped'}", *MOVED, *ONE_RANK, "guard.check_steps=0"]
    train(load_recipe(runs / "recipe.yaml", again))
    assert losses(runs / "stopped") == pytest.approx(losses(runs / "one"), rel=1e-6)
    assert_same_adapter(runs / "stopped", runs / "one")
    # Two ranks sum as two ranks did: bit for bit the run that was not interrupted.
    assert losses(runs / "stopped-again") == losses(runs / "fsdp2")
    whole = load_file(runs / "fsdp2" / FACTORS)
    for name, tensor in load_file(runs / "stopped-again" / FACTORS).items():
        assert torch.equal(tensor, whole[name]), name


def test_rows_that_meet_nan_are_left_out_and_then_stop_all_ranks(runs, seen):
    """A rank without such a row has a finite loss; its gradients are spoiled by the sum."""
    first, second = seen["nan"]
    assert first == second and first[0] == "GuardError"
    assert "that is 2 steps in a row without an update" in first[2]
    lines = figures(runs / "nan-one")
    assert [math.isnan(line["loss"]) for line in lines] == [True, False, True]
    assert_same_figures(figures(runs / "nan"), lines)
    assert not (runs / "nan" / "adapter").exists()
    record = json.loads((runs / "nan" / "run.json").read_text())
    assert record["status"] == "stopped by the guard" and record["guard"]["skipped_steps"] == 3
    for step in (1, 3, 4):
        (alone,) = kept_batches(runs / "nan-one", step)
        both = kept_batches(runs / "nan", step)
        assert [body["rank"] for body in both] == [0, 1]
        assert sorted(both[0]["rows"] + both[1]["rows"]) == sorted(alone["rows"])
        bad = [body for body in both if body["loss"] == "nan"]
        met = sorted(row for body in bad for row in body["rows"] if row in POISONED)
        assert met == sorted(row for row in alone["rows"] if row in POISONED) != []
    # The last step has two rows: one rank's is at fault, and it alone is named.
    ((guilty,),) = [[body for body in both if body["loss"] == "nan"]]
    assert f"step 4, rank {guilty['rank']}: the loss is not finite" in first[2]
    assert first[2].count("rows.jsonl:") == 1 and guilty["sources"][0] in first[2]


def kept_batches(run, step):
    files = sorted((run / "nonfinite").glob(f"step-{step}-rank-*.json"))
    return [json.loads(path.read_text()) for path in files]


def test_experts_that_are_cut_off_are_named_whoever_holds_them(runs, seen):
    first, second = seen["disconnected"]
    assert first == second and first[0] == "GuardError"
    named = [line.strip() for line in first[2].splitlines()[1:-1]]
    expected = []
    for layer in range(LAYERS):
        experts = f"model.layers.{layer}.mlp.experts"
        expected += [
            f"{experts}.base_layer.lora_B.default.weight (gate_up_proj) got no gradient",
            f"{experts}.lora_B.default.weight (down_proj): experts 1, 6 got tokens and no gradient",
        ]
    assert named == expected
    assert not (runs / "disconnected" / "adapter").exists()


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
    made = plan(load_recipe(runs / "recipe.yaml"), GPUS[-1], gpus=2, strategy="fsdp2")
    for rank in seen["memory"]:
        assert rank["kinds"]["experts"] == made.memory.kinds["experts"]
        for kind in ("attention", "embeddings", "adapters"):
            assert rank["kinds"][kind] == pytest.approx(made.memory.kinds[kind], rel=0.01)


def test_the_guard_judges_shares_together(seen):
    names = ("still", "silent", "sound", "moved")
    still, silent, sound, moved = (seen["guard"][name] for name in names)
    assert all("got a gradient and did not move" in " ".join(lines) for lines in still)
    assert silent[0] == silent[1]
    assert silent[0][0].endswith(f"experts 0, {EXPERTS - 1} got tokens and no gradient")
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
    configurations = Path(__file__).parents[3] / "recipes" / "accelerate"
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
