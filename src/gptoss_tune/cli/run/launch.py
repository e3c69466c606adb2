"""``gptoss-tune launch``: the job file of a cluster, written around ``accelerate launch``.

Schedulers start processes, watch them and start them again; this command only writes the file
that tells them how, and checks first what would otherwise fail after an hour in the queue. A
scheduler of our own, or a submission through a library, was the alternative: a text that can be
read, changed and kept beside the recipe needs neither.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import Overrides, RecipePath, renamed_option

if TYPE_CHECKING:
    from gptoss_tune.recipe import DistributedSection, ResolvedLine, TrainSection
    from gptoss_tune.workflows.cluster.job import Job, Luggage

_TIME = "24:00:00"
# Options that some systems have no use for: who reads them.
_READERS = {
    "--time": ("slurm", "hf-jobs", "sagemaker"),
    "--cpus-per-node": ("slurm",),
    "--sbatch": ("slurm",),
    "--gpu": ("skypilot", "hf-jobs", "sagemaker"),
    "--bucket": ("skypilot", "hf-jobs", "sagemaker"),
    "--spot": ("skypilot", "sagemaker"),
    "--claim": ("kubernetes",),
    "--package": ("skypilot", "kubernetes", "hf-jobs"),
    "--image": ("skypilot", "kubernetes", "hf-jobs", "sagemaker"),
    "--secret": ("skypilot", "kubernetes", "hf-jobs", "sagemaker"),
}


@dataclass(frozen=True)
class _Asked:
    """The options that are read by some systems only, as given."""

    time: str | None
    cpus_per_node: int | None
    sbatch: list[str] | None
    gpu: str | None
    bucket: str | None
    spot: bool
    claim: str | None
    package: str | None
    image: str | None
    secret: list[str] | None


def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write a batch script.")] = False,
    skypilot: Annotated[bool, typer.Option("--skypilot", help="Write a SkyPilot task.")] = False,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Write a Job of Kubernetes.")
    ] = False,
    hf_jobs: Annotated[
        bool, typer.Option("--hf-jobs", help="Write a script for Hugging Face Jobs.")
    ] = False,
    sagemaker: Annotated[
        bool, typer.Option("--sagemaker", help="Write a Python file that starts it on SageMaker.")
    ] = False,
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
            help="Slurm, Hugging Face, SageMaker: longest time of one start; default: 24:00:00.",
            show_default=False,
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
        typer.Option(
            help="SkyPilot: name of the GPU; default: H100. Hugging Face: flavor. SageMaker: "
            "instance type.",
            show_default=False,
        ),
    ] = None,
    bucket: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The run lies here: s3://mine (SkyPilot, SageMaker), hf://buckets/OWNER/NAME.",
        ),
    ] = None,
    claim: Annotated[
        str | None,
        typer.Option(
            help="Kubernetes: claim of the volume with data and run; default: gptoss-runs.",
            show_default=False,
        ),
    ] = None,
    spot: Annotated[
        bool, typer.Option("--spot", help="SkyPilot, SageMaker: on spot machines.")
    ] = False,
    package: Annotated[
        str | None,
        typer.Option(
            help="What pip installs there; default: gptoss-tune[train] of this version.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Container image that has gptoss-tune; nothing is installed.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Variable with a token, by its name alone; repeatable; default: HF_TOKEN, and "
            "WANDB_API_KEY where the run needs it.",
        ),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE", help="Shell line run before the training; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the job; default: output_dir's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write, - for the screen; default: after the name.")
    ] = None,
    _: Annotated[Path | None, renamed_option("--output", "--out")] = None,
) -> None:
    """Write the job file that trains a recipe on a cluster and goes on after every stop."""
    from gptoss_tune.recipe import load_recipe, resolved_lines
    from gptoss_tune.workflows.cluster.inputs import named_files
    from gptoss_tune.workflows.cluster.job import Job, job_name

    flags = {"slurm": slurm, "skypilot": skypilot, "kubernetes": kubernetes}
    flags |= {"hf-jobs": hf_jobs, "sagemaker": sagemaker}
    system = _system(flags)
    asked = _Asked(time, cpus_per_node, sbatch, gpu, bucket, spot, claim, package, image, secret)
    _refuse_unread(asked, system)
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
    if system == "slurm":
        text, ending, submit = _slurm(job, asked)
    else:
        folder = _run_folder(system, loaded.train.output_dir, asked.bucket)
        there = loaded.with_settings(
            {"train.output_dir": folder, "distributed.num_processes": processes}
        )
        luggage = _luggage(
            resolved_lines(there),
            named_files(
                there.model.name_or_path, there.lora.init_from, there.data, there.evaluation
            ),
            asked,
            wandb=there.tracking.wandb == "online",
        )
        text, ending, submit = _elsewhere(job, luggage, system, asked)
    place = out or Path(f"{job.name}{ending}")
    if str(place) == "-":
        sys.stdout.write(text)
        return
    _write(place, text)
    kept = system != "skypilot" or bucket is not None
    told = submit.format(file=place)
    shared = loaded.distributed.context_parallel
    _say(loaded.train, job, told, system, context_parallel=shared, kept=kept)
    if loaded.method.name == "grpo":
        typer.echo(
            "episodes: a class of your own is named in that file, after gptoss_tune.train "
            "(--environment MODULE:CLASS), and its module lies where the job starts"
        )


def _system(flags: dict[str, bool]) -> str:
    """Return the one system that was named.

    Raises:
        RecipeError: None or several were.
    """
    from gptoss_tune.errors import RecipeError

    named = [name for name, given in flags.items() if given]
    if len(named) != 1:
        *first, last = (f"--{name}" for name in flags)
        raise RecipeError(f"launch: name one of {', '.join(first)} and {last}")
    return named[0]


def _refuse_unread(asked: _Asked, system: str) -> None:
    """Refuse options that another system would read, and this job file could not hold.

    Raises:
        RecipeError: One of them is given.
    """
    from gptoss_tune.errors import RecipeError

    given = [o for o in _READERS if getattr(asked, o.removeprefix("--").replace("-", "_"))]
    unread = [option for option in given if system not in _READERS[option]]
    if unread:
        readers = dict.fromkeys(reader for option in unread for reader in _READERS[option])
        raise RecipeError(
            f"launch: {', '.join(unread)} would have no effect, it is for "
            f"{', '.join(f'--{reader}' for reader in readers)}; remove it"
        )


def _slurm(job: Job, asked: _Asked) -> tuple[str, str, str]:
    """Return the job file, how its name ends, and the command that submits it."""
    from gptoss_tune.workflows.cluster.slurm import slurm_script

    text = slurm_script(
        job, time=asked.time or _TIME, cpus=asked.cpus_per_node, directives=asked.sbatch or []
    )
    return text, ".sbatch", "sbatch {file}"


def _run_folder(system: str, output_dir: str, bucket: str | None) -> str:
    """Return where the run lies on the job's machine."""
    from gptoss_tune.workflows.cluster import hf_jobs, kubernetes, sagemaker, skypilot

    if system == "skypilot":
        return skypilot.run_folder(output_dir, bucket)
    rooms = {"kubernetes": kubernetes, "hf-jobs": hf_jobs, "sagemaker": sagemaker}
    return rooms[system].run_folder(output_dir)


def _elsewhere(job: Job, luggage: Luggage, system: str, asked: _Asked) -> tuple[str, str, str]:
    """Return the file of a job on a machine elsewhere, as ``_slurm`` does of one here."""
    from gptoss_tune.workflows.cluster import hf_jobs, kubernetes, sagemaker, skypilot

    time = asked.time or _TIME
    there = _there(job, "/recipe/recipe.yaml" if system == "kubernetes" else "recipe.yaml")
    if system == "skypilot":
        text = skypilot.skypilot_task(
            there, luggage, gpu=asked.gpu or "H100", bucket=asked.bucket, spot=asked.spot
        )
        tokens = "".join(f" --secret {secret}" for secret in luggage.secrets)
        return text, ".sky.yaml", f"sky jobs launch{tokens} {{file}}"
    if system == "kubernetes":
        text = kubernetes.kubernetes_job(there, luggage, claim=asked.claim or "gptoss-runs")
        return text, ".k8s.yaml", "kubectl apply -f {file}"
    if system == "hf-jobs":
        text = hf_jobs.hf_jobs_script(
            there, luggage, flavor=asked.gpu, bucket=asked.bucket, time=time
        )
        return text, ".hf.sh", "bash {file}"
    text = sagemaker.sagemaker_file(
        there, luggage, instance=asked.gpu, bucket=asked.bucket, time=time, spot=asked.spot
    )
    return text, ".sagemaker.py", "python {file} --role ARN"


def _luggage(
    lines: Iterable[ResolvedLine], named: list[str], asked: _Asked, *, wandb: bool
) -> Luggage:
    """Return what the job needs on a machine that does not see this one's disk."""
    from gptoss_tune import __version__
    from gptoss_tune.workflows.cluster.inputs import local_files, shipped_there
    from gptoss_tune.workflows.cluster.job import Luggage, changed_recipe, refuse_names

    wanted = ["HF_TOKEN", "WANDB_API_KEY"] if wandb else ["HF_TOKEN"]
    names = tuple(asked.secret or wanted)
    refuse_names(names, asked.image)
    recipe, shipped = shipped_there(changed_recipe(lines), named)
    return Luggage(
        recipe=recipe,
        files=local_files([name for name in named if name not in shipped], Path.cwd()),
        folder=Path.cwd(),
        package=asked.package or f"gptoss-tune[train]=={__version__}",
        image=asked.image,
        secrets=names,
        shipped_data=bool(shipped),
    )


def _there(job: Job, recipe: str) -> Job:
    """Return the job as the machine runs it: the overrides are in the recipe that it is given."""
    from dataclasses import replace

    return replace(job, recipe=Path(recipe), overrides=())


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
        raise RecipeError(f"{place}: exists and is not overwritten; remove it, or give --out")
    write_text(place, text)


def _say(
    train: TrainSection, job: Job, submit: str, system: str, *, context_parallel: int, kept: bool
) -> None:
    """Print what the file will do, and what would be lost."""
    rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
    rows *= job.processes // context_parallel
    shared = f", each shared by {context_parallel} GPUs" if context_parallel > 1 else ""
    typer.echo(
        f"{submit}: {job.nodes} x {job.gpus_per_node} GPUs, accelerate with {job.accelerate}, "
        f"{rows} rows per optimizer step{shared}"
    )
    again = "the same command goes on from there"
    if system in ("slurm", "skypilot", "kubernetes"):
        again = "the job is queued again"
    typer.echo(f"on SIGTERM: a checkpoint, exit code 75, and {again}")
    if train.save_steps is None:
        typer.echo(
            "warning: train.save_steps is not set, so a machine that is lost without a signal "
            "loses the whole run"
        )
    if not kept:
        typer.echo("warning: without --bucket the run lies on the machine and is lost with it")
