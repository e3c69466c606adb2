"""``gptoss-tune launch``: the job file of a cluster, written around ``accelerate launch``.

Slurm and SkyPilot start processes, watch them and start them again; this command only writes the
file that tells them how, and checks first what would otherwise fail after an hour in the queue. A
scheduler of our own, or a submission through a library, was the alternative: a text that can be
read, changed and kept beside the recipe needs neither.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import Overrides, RecipePath

if TYPE_CHECKING:
    from gptoss_tune.recipe import DistributedSection, TrainSection
    from gptoss_tune.workflows.cluster_jobs import Job


def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write a batch script.")] = False,
    skypilot: Annotated[bool, typer.Option("--skypilot", help="Write a SkyPilot task.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of each, a process each.")] = 8,
    accelerate: Annotated[
        str | None,
        typer.Option(
            metavar="ddp|fsdp2|FILE",
            help="Accelerate's configuration; default: one_gpu for one process, else "
            "distributed.strategy, else ddp.",
            show_default=False,
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            help="Slurm: longest time of one start; default: 24:00:00.", show_default=False
        ),
    ] = None,
    cpus_per_node: Annotated[
        int | None,
        typer.Option(min=1, help="Slurm: cores of each; default: 8 a GPU.", show_default=False),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Slurm: a further #SBATCH line, such as partition=gpu."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="SkyPilot: name of the GPU; default: H100.", show_default=False),
    ] = None,
    bucket: Annotated[
        str | None,
        typer.Option(metavar="URL", help="SkyPilot: the run lies here, such as s3://mine."),
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="SkyPilot: on spot machines.")] = False,
    setup: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE", help="Shell line run before the training; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the job; default: output_dir's.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write, - for the screen; default: after the name.")
    ] = None,
) -> None:
    """Write the job file that trains a recipe on a cluster and goes on after every stop."""
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.workflows.cluster_jobs import Job, job_name, skypilot_task, slurm_script

    if slurm == skypilot:
        raise RecipeError("launch: name one of --slurm and --skypilot")
    if slurm:
        _refuse("SkyPilot", {"--gpu": gpu, "--bucket": bucket, "--spot": spot})
    else:
        _refuse("Slurm", {"--time": time, "--cpus-per-node": cpus_per_node, "--sbatch": sbatch})
    words = list(overrides or ())
    loaded = load_recipe(recipe, words)
    processes = nodes * gpus_per_node
    _check_processes(loaded.distributed, nodes, gpus_per_node, accelerate)
    _check_resume(loaded.train.resume)
    if loaded.distributed.num_processes != processes:
        words.append(f"distributed.num_processes={processes}")
    job = Job(
        name=job_name(name or Path(loaded.train.output_dir).name),
        recipe=recipe,
        overrides=tuple(words),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        accelerate=accelerate
        or ("one_gpu" if processes == 1 else loaded.distributed.strategy or "ddp"),
        setup=tuple(setup or ()),
    )
    if slurm:
        longest = time or "24:00:00"
        text = slurm_script(job, time=longest, cpus=cpus_per_node, directives=sbatch or [])
        place = output or Path(f"{job.name}.sbatch")
    else:
        run = loaded.train.output_dir
        text = skypilot_task(job, gpu=gpu or "H100", bucket=bucket, spot=spot, output_dir=run)
        place = output or Path(f"{job.name}.sky.yaml")
    if str(place) == "-":
        sys.stdout.write(text)
        return
    _write(place, text)
    submit = f"sbatch {place}" if slurm else f"sky jobs launch {place}"
    _say(loaded.train, job, submit, kept=slurm or bucket is not None)


def _refuse(scheduler: str, options: dict[str, object]) -> None:
    """Refuse options that another scheduler would read, and this job file could not hold.

    Raises:
        RecipeError: One of them is given.
    """
    from gptoss_tune.errors import RecipeError

    given = ", ".join(name for name, value in options.items() if value)
    if given:
        raise RecipeError(f"launch: {given} would have no effect, it is for {scheduler}; remove it")


def _check_processes(
    distributed: DistributedSection, nodes: int, gpus_per_node: int, accelerate: str | None
) -> None:
    """Refuse a job whose processes are not those of the recipe.

    Raises:
        RecipeError: The recipe names another number of them, or another way to share the model.
    """
    from gptoss_tune.errors import RecipeError

    asked, processes = distributed.num_processes, nodes * gpus_per_node
    if asked not in (1, processes):
        raise RecipeError(
            f"distributed.num_processes is {asked}, but {nodes} x {gpus_per_node} GPUs are "
            f"{processes} processes; set distributed.num_processes={processes}, or change --nodes "
            "and --gpus-per-node"
        )
    strategy = distributed.strategy
    if strategy is not None and accelerate in ("ddp", "fsdp2") and accelerate != strategy:
        raise RecipeError(
            f"--accelerate {accelerate}: the recipe says distributed.strategy: {strategy}; remove "
            f"the option, or set distributed.strategy={accelerate}"
        )


def _check_resume(resume: str) -> None:
    """Refuse what would be lost after the first requeue.

    Raises:
        RecipeError: The run does not resume by itself.
    """
    from gptoss_tune.errors import RecipeError

    if resume != "auto":
        raise RecipeError(
            f"train.resume is {resume!r}; a job that is started again continues from "
            "its newest checkpoint only with train.resume=auto"
        )


def _write(place: Path, text: str) -> None:
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.files.atomic import write_text

    if place.exists():
        raise RecipeError(f"{place}: exists and is not overwritten; remove it, or give --output")
    write_text(place, text)


def _say(train: TrainSection, job: Job, submit: str, *, kept: bool) -> None:
    """Print what the file will do, and what would be lost."""
    rows = train.per_device_train_batch_size * train.gradient_accumulation_steps * job.processes
    typer.echo(
        f"{submit}: {job.nodes} x {job.gpus_per_node} GPUs, accelerate with {job.accelerate}, "
        f"{rows} rows per optimizer step"
    )
    typer.echo("on SIGTERM: a checkpoint, exit code 75, and the job is queued again")
    if train.save_steps is None:
        typer.echo(
            "warning: train.save_steps is not set, so a machine that is lost without a signal "
            "loses the whole run"
        )
    if not kept:
        typer.echo("warning: without --bucket the run lies on the machine and is lost with it")
