"""What every job file shares: the job, its names, and one shell function that runs a node.

The function is where a preemption becomes a checkpoint. Accelerate, given the signal, would end its
ranks after 30 seconds and always leaves with exit code 1. So the shell passes the signal to the
ranks, which save and leave, and answers itself with 75. Every word that comes from a recipe or a
command line is quoted; a job's name, which stands in comments, is reduced to letters, digits, dots,
dashes and underscores.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_tune.errors import RecipeError

if TYPE_CHECKING:
    from gptoss_tune.recipe import ResolvedLine

SAVING_SECONDS = 120
"""Time between the signal and the end of a job, for the step at hand and its checkpoint."""
IMAGE = "python:3.12-bookworm"
"""A public image with a compiler, which Triton needs; torch's wheels bring CUDA's libraries."""
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@-]*")
_SHIPPED = ("ddp", "fsdp2", "one_gpu", "cpu")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d\d))?(?::(?P<third>\d\d))?")

# A job starts in a folder of data and runs; a yaml.py among them is no module of ours.
SAFE_PATH = "export PYTHONSAFEPATH=1"
# Where a signal goes to every process, accelerate gets it too and should let its ranks finish.
PATIENCE = f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING_SECONDS - 10}"

RUN_NODE = r"""run_node() {
  local launcher code signalled=
  # To the ranks, which save and leave; accelerate would end them after 30 seconds.
  trap 'signalled=1; pkill -TERM -P "$launcher"' TERM
  "$@" &
  launcher=$!
  wait "$launcher"; code=$?
  while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; code=$?; done
  # Accelerate's own code is always 1.
  if [ "$code" -ne 0 ] && [ -n "$signalled" ]; then code=75; fi
  return "$code"
}"""


@dataclass(frozen=True)
class Job:
    """What is run, whoever starts it.

    Attributes:
        name: Of the job, from ``job_name``.
        recipe: The recipe's file.
        overrides: Laid over it, with ``distributed.num_processes`` where the recipe says less.
        nodes: Machines.
        gpus_per_node: Processes on each.
        accelerate: A shipped configuration's name, or a file.
        setup: Shell lines that go before.
    """

    name: str
    recipe: Path
    overrides: tuple[str, ...]
    nodes: int
    gpus_per_node: int
    accelerate: str
    setup: tuple[str, ...]

    @property
    def processes(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Luggage:
    """What a job needs on a machine that does not see this one's disk.

    Attributes:
        recipe: The recipe's text, resolved, with the run's folder as the machine has it.
        files: Files and folders that it reads, relative to ``folder``.
        folder: From where they are sent: the current folder.
        package: What pip installs.
        image: Container image that has the package already; ``None``: ``IMAGE``, and pip.
        secrets: Names of the variables that hold tokens.
        shipped_data: Whether the recipe reads data that the package brings.
    """

    recipe: str
    files: tuple[str, ...]
    folder: Path
    package: str
    image: str | None
    secrets: tuple[str, ...]
    shipped_data: bool = False

    def write_recipe(self) -> list[str]:
        """Return the shell lines that write ``recipe.yaml``."""
        return ["cat > recipe.yaml <<'END_OF_RECIPE'", self.recipe.rstrip(), "END_OF_RECIPE"]

    def link_data(self) -> list[str]:
        """Return the shell line that puts the shipped data into the current folder."""
        if not self.shipped_data:
            return []
        code = "from gptoss_tune.shipped import shipped; print(shipped('data'))"
        return [f'ln -sfn "$(python -c {shlex.quote(code)})" gptoss-data || exit 3']

    def install(self) -> list[str]:
        """Return the shell line that installs the package, where the image has none."""
        if self.image is not None:
            return []
        return [f"python -m pip install --quiet {shlex.quote(self.package)} || exit 3"]


def job_name(text: str) -> str:
    """Return ``text`` as a name that no shell, YAML reader or ``#SBATCH`` line reads otherwise."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-")[:60] or "gptoss-tune"


def label_name(name: str) -> str:
    """Return a job's name as DNS and SageMaker take it: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "gptoss-tune"


def seconds_of(time: str) -> int:
    """Return the seconds of a time as Slurm writes it: ``12:00:00``, ``2-0``, ``90`` (minutes).

    Raises:
        RecipeError: It is none.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise RecipeError(f"--time: got {time!r}, expected Slurm's form, such as 12:00:00 or 2-0")
    first, second, third = (int(match[key] or 0) for key in ("first", "second", "third"))
    if match["days"] is not None:
        return 86_400 * int(match["days"]) + 3600 * first + 60 * second + third
    if match["third"] is not None:
        return 3600 * first + 60 * second + third
    return 60 * first + second


def changed_recipe(lines: Iterable[ResolvedLine]) -> str:
    """Return the lines of a resolved recipe that differ from the defaults, in their sections."""
    kept: list[str] = []
    sections: list[ResolvedLine] = []
    for line in lines:
        if line.kind == "section":
            sections = [s for s in sections if line.setting.startswith(f"{s.setting}.")] + [line]
        elif line.kind == "changed":
            above = [s for s in sections if line.setting.startswith(f"{s.setting}.")]
            kept += [section.text for section in above]
            sections = [section for section in sections if section not in above]
            kept.append(line.text)
    return "\n".join(kept) + "\n"


def launch_line(job: Job, *, rank: str, python: str) -> str:
    """Return the command of one node, continued over lines of a shell.

    Args:
        job: What is run.
        rank: The node's number as the shell knows it, such as ``$SLURM_NODEID``.
        python: The interpreter.
    """
    parts = [
        f"{shlex.quote(python)} -m accelerate.commands.launch --config_file",
        f'"$config" --num_processes {job.processes}',
    ]
    if job.processes > 1:
        # The variables are exported by the job's shell and read on each node.
        parts.append(
            f'--num_machines {job.nodes} --machine_rank "{rank}" --main_process_ip "$MASTER_ADDR"'
        )
        parts.append('--main_process_port "$MASTER_PORT"')
    words = [str(job.recipe), *job.overrides]
    parts.append("-m gptoss_tune.train " + shlex.join(words))
    return f"{parts[0]} " + " \\\n    ".join(parts[1:])


def config_line(job: Job, python: str) -> str:
    """Return the shell line that sets ``config`` to accelerate's configuration."""
    if job.accelerate not in _SHIPPED:
        if not Path(job.accelerate).is_file():
            raise RecipeError(
                f"--accelerate: {job.accelerate!r} is no file and none of {', '.join(_SHIPPED)}"
            )
        return f"export config={shlex.quote(job.accelerate)}"
    code = "from gptoss_tune.shipped import shipped; print(shipped('recipes') / 'accelerate')"
    command = f"{shlex.quote(python)} -c {shlex.quote(code)}"
    return f"config=$({command})/{job.accelerate}.yaml || exit 3; export config"


def node_script(job: Job, *, rank: str, before: Iterable[str], master: Iterable[str]) -> str:
    """Return the shell script of one node on a machine of its own, which ends with the run's code.

    Args:
        job: What is run.
        rank: The node's number as the shell knows it.
        before: Lines that go before: the folder, the recipe, the package.
        master: Lines that set ``MASTER_ADDR``; empty for one node.
    """
    lines = [
        "set -u",
        SAFE_PATH,
        PATIENCE,
        *job.setup,
        *before,
        "export MASTER_ADDR=127.0.0.1 MASTER_PORT=12355",
        *(master if job.nodes > 1 else ()),
        config_line(job, "python"),
        RUN_NODE,
        "run_node " + launch_line(job, rank=rank if job.nodes > 1 else "0", python="python"),
    ]
    return "\n".join(lines) + "\n"


def refuse_other_file(job: Job) -> None:
    """Refuse an accelerate configuration that the machine would not have.

    Raises:
        RecipeError: ``--accelerate`` names a file of this machine.
    """
    if job.accelerate not in _SHIPPED:
        raise RecipeError(
            f"--accelerate {job.accelerate}: the job's machine does not have this file; name one "
            f"of {', '.join(_SHIPPED)}"
        )


def refuse_names(secrets: Iterable[str], image: str | None) -> None:
    """Refuse what is no name of a variable, such as a token itself, and no name of an image.

    Raises:
        RecipeError: One of them; a value is not repeated in the message.
    """
    for secret in secrets:
        if not _VARIABLE.fullmatch(secret):
            raise RecipeError(
                "--secret: expected the name of a variable such as HF_TOKEN, in capitals; its "
                "value is never written into a file"
            )
    if image is not None and not _IMAGE.fullmatch(image):
        raise RecipeError(f"--image: got {image!r}, expected a name such as registry/name:tag")
