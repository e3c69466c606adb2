"""What the launcher started: how many processes, sharing the model by DDP or FSDP2, or a refusal.

A launcher's FSDP means version 2, which this project applies itself
(``model.parallel.sharding``), so Accelerate must not apply it once more: its switch is read here
and turned off for the process. Whatever else its configuration says about FSDP and would have no
effect is refused, and so are FSDP 1, which flattens parameters and with them the packed bytes, and
DeepSpeed ZeRO, whose partitions are cut without asking the tensor.
"""

from __future__ import annotations

import os

from gptoss_tune.errors import MachineError
from gptoss_tune.recipe.recipe import fsdp2_obstacle
from gptoss_tune.recipe.schema import ModelSection, Parallelism, TrainSection

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
_WITHOUT_EFFECT = {
    "FSDP_OFFLOAD_PARAMS": "packed experts stay on the GPU",
    "FSDP_ACTIVATION_CHECKPOINTING": "the recipe's train.activation_checkpointing decides",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "every rank reads its own share of the files",
}


def launched_parallelism(
    asked: Parallelism | None, model: ModelSection, train: TrainSection
) -> Parallelism:
    """Return how the processes of this run share the model; with one process it is whole.

    Args:
        asked: ``distributed.strategy``.
        model: Of the recipe: what FSDP2 cannot spread of it is refused.
        train: Likewise.

    Raises:
        MachineError: The launcher asks for DeepSpeed, FSDP 1 or a setting without effect, or the
            recipe for what FSDP2 cannot spread or for another way to share the model.
    """
    if _is_on(_DEEPSPEED):
        raise MachineError(
            "the launcher asks for DeepSpeed ZeRO (distributed_type: DEEPSPEED), which cuts "
            "parameters into flat pieces and cannot cut experts packed in MXFP4; launch with "
            "recipes/accelerate/ddp.yaml, where each GPU holds the whole model (20b: 12.8 GiB, "
            "120b: 60.8 GiB, adapters and activations besides), or with "
            "recipes/accelerate/fsdp2.yaml, where it is spread over them"
        )
    if not _is_on(_FSDP):
        return _as_asked("ddp", asked)
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise MachineError(
            f"the launcher asks for FSDP {version}, which flattens parameters and with them the "
            "packed experts; set fsdp_version: 2, or launch with recipes/accelerate/fsdp2.yaml"
        )
    for variable, why in _WITHOUT_EFFECT.items():
        if _is_on(variable):
            raise MachineError(
                f"the launcher sets {variable.lower()}: true, which has no effect here: {why}; "
                "set it to false, or launch with recipes/accelerate/fsdp2.yaml"
            )
    reason = fsdp2_obstacle(model, train)
    if reason is not None:
        raise MachineError(reason)
    started = _as_asked("fsdp2", asked) if _processes() > 1 else "ddp"
    os.environ[_FSDP] = "false"
    return started


def launched_processes(
    asked: int, started: int, strategy: Parallelism | None = None
) -> tuple[str, ...]:
    """Return what the user should be told of the number of processes.

    A recipe that says nothing says 1, and more processes than that are the launcher's business. A
    recipe that names a number was written for the rows a step that it gives.

    Args:
        asked: ``distributed.num_processes``.
        started: Processes of this run.
        strategy: ``distributed.strategy``, which the commands that are advised have to keep.

    Raises:
        MachineError: The recipe names another number than were started.
    """
    if asked not in (1, started):
        if strategy == "fsdp2":
            ways = "--config_file recipes/accelerate/fsdp2.yaml -m gptoss_tune.train RECIPE`"
        else:
            ways = (
                "--multi_gpu -m gptoss_tune.train RECIPE`, which works on CPUs too, or with "
                f"`torchrun --nproc_per_node {asked} -m gptoss_tune.train RECIPE`"
            )
        alone = " distributed.strategy=null" if started == 1 and strategy is not None else ""
        raise MachineError(
            f"the recipe says distributed.num_processes: {asked}, and the launcher started "
            f"{started} (on CPUs, `accelerate launch --cpu` starts one whatever it is told); "
            "start them with `gptoss-tune train RECIPE`, or with `accelerate launch "
            f"--num_processes {asked} {ways}; or train on "
            f"{started} with distributed.num_processes={started}{alone}"
        )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if started == 1 and tasks > 1:
        return (
            f"srun started {tasks} tasks, and each of them trains alone, as one process: RANK and "
            "WORLD_SIZE are not set; `gptoss-tune launch --slurm` writes a job that shares the "
            "work",
        )
    return ()


def _as_asked(started: Parallelism, asked: Parallelism | None) -> Parallelism:
    """Return how the model is shared, unless the recipe asks for the other way.

    Raises:
        MachineError: It does; one process has nothing to share.
    """
    if asked is None or asked == started or _processes() == 1:
        return started
    raise MachineError(
        f"the recipe says distributed.strategy: {asked}, and the launcher starts {started}; launch "
        f"with recipes/accelerate/{asked}.yaml, or set distributed.strategy={started}"
    )


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")
