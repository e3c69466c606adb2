"""What a launcher may ask for, and what is refused before anything is read or written."""

import os

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.train.distributed.launcher import launched_parallelism, launched_processes
from gptoss_tune.train.run import train


def _launched(recipe):
    return launched_parallelism(recipe.distributed.strategy, recipe.model, recipe.train)


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed ZeRO .* cannot cut experts packed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP 1.* set fsdp_version: 2"),
        (
            {**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"},
            "offload_params: true, which has no effect",
        ),
        (
            {**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            r"train\.activation_checkpointing decides",
        ),
        ({**FSDP2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "reads its own share"),
    ],
    ids=["deepspeed", "fsdp1", "offload", "checkpointing", "loading"],
)
def test_what_cannot_be_done_is_refused_with_what_works(
    recipe, monkeypatch, tmp_path, environment, reason
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=reason) as refused:
        train(recipe())
    assert "recipes/accelerate/fsdp2.yaml" in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.linear_precision=nf4", "linear_precision: nf4.* set it to bf16"),
        ("train.optim=adamw_8bit", "optim: adamw_8bit.* set it to adamw"),
    ],
)
def test_what_fsdp2_cannot_spread_is_refused(recipe, monkeypatch, override, reason):
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=reason):
        _launched(recipe(override))


@pytest.mark.parametrize(("started", "asked"), [("fsdp2", "ddp"), ("ddp", "fsdp2")])
def test_another_way_to_share_the_model_than_the_recipes_is_refused(
    recipe, monkeypatch, started, asked
):
    for name, value in {**FSDP2, "ACCELERATE_USE_FSDP": str(started == "fsdp2")}.items():
        monkeypatch.setenv(name, value)
    asking = recipe("distributed.num_processes=8", f"distributed.strategy={asked}")
    message = f"recipes/accelerate/{asked}.yaml, or set distributed.strategy={started}"
    with pytest.raises(MachineError, match=message):
        _launched(asking)
    assert (
        _launched(recipe("distributed.num_processes=8", f"distributed.strategy={started}"))
        == started
    )
    monkeypatch.setenv("WORLD_SIZE", "1")  # nothing is shared, whatever is asked for
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(started == "fsdp2"))
    assert _launched(asking) == "ddp"


def test_fsdp2_is_taken_over_and_one_process_has_nothing_to_spread(recipe, monkeypatch):
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    assert _launched(recipe()) == "fsdp2"
    assert os.environ["ACCELERATE_USE_FSDP"] == "false"  # or Accelerate would spread it again
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert _launched(recipe()) == "ddp"


def test_fewer_processes_than_the_recipe_says_are_refused_before_anything_is_written(
    recipe, tmp_path
):
    """As ``accelerate launch --num_processes 2 --cpu`` starts them: one, without a word."""
    with pytest.raises(MachineError) as refused:
        train(recipe("distributed.num_processes=2"))
    said = str(refused.value)
    assert "num_processes: 2, and the launcher started 1" in said
    assert "--num_processes 2 --multi_gpu" in said and "distributed.num_processes=1" in said
    assert not (tmp_path / "run").exists()


def test_the_number_of_processes_is_the_recipes_or_the_launchers(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    assert launched_processes(1, 1) == launched_processes(8, 8) == launched_processes(1, 2) == ()
    for asked, started in ((2, 1), (8, 16), (16, 8)):
        with pytest.raises(MachineError, match=f"launcher started {started}"):
            launched_processes(asked, started)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    (note,) = launched_processes(1, 1)
    assert "srun started 8 tasks, and each of them trains alone" in note
    assert launched_processes(1, 8) == ()


def test_the_way_to_other_processes_keeps_the_strategy(recipe):
    with pytest.raises(MachineError) as refused:
        launched_processes(4, 1, "fsdp2")
    said = str(refused.value)
    assert "--num_processes 4 --config_file recipes/accelerate/fsdp2.yaml" in said
    assert "torchrun" not in said
    advised = said.rpartition(" with ")[2].split()
    assert recipe(*advised).distributed.num_processes == 1
