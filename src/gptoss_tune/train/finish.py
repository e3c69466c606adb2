"""The end of a run and its artifacts: finished, stopped by a signal, or stopped by the guard.

Each leaves a record and a report; the adapter is written once, before the evaluations that come
last, so that a signal in them costs figures and no training.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from gptoss_tune.display import visible
from gptoss_tune.errors import GptossTuneError, GuardError, RunInterrupted
from gptoss_tune.report.page import write_report
from gptoss_tune.run import card, checkpoints
from gptoss_tune.run.checkpoints import disk_full
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import update_record
from gptoss_tune.terminal import next_commands
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.distributed.signals import EvaluationLeftOut
from gptoss_tune.train.guard.guard import Guard
from gptoss_tune.train.metrics.step_metrics import peak_memory_bytes
from gptoss_tune.train.trainer import MethodTrainer, save_adapter


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    Attributes:
        folder: The run's folder.
        adapter: The folder of the trained adapter.
        steps: Optimizer steps in total, those before a resume included.
        loss: Mean training loss of the last logged step; ``None`` if no logged step was finite.
        eval_loss: Mean loss on the held-out data at the end; ``None`` without such data.
        seconds: Wall time of this process.
        peak_memory_bytes: Peak GPU allocation, or the process's peak resident size on a CPU.
    """

    folder: Path
    adapter: Path
    steps: int
    loss: float | None
    eval_loss: float | None
    seconds: float
    peak_memory_bytes: int


def interrupted(trainer: MethodTrainer, context: RunContext) -> NoReturn:
    """End a run that a signal stopped; its last checkpoint is complete.

    Raises:
        RunInterrupted: Always, with the step and where to go on.
    """
    run, step = context.run, trainer.state.global_step
    if trainer.args.should_save:
        update_record(run, status="stopped", steps=step)
        write_run_report(run, context.console)
    missing = "".join(f"; the evaluation at step {n} was left out" for n in trainer.left_out)
    raise RunInterrupted(
        f"a signal ended the run after step {step} of {trainer.state.max_steps}; "
        f"{RunFolder(run).checkpoint(step)} is complete, the same command continues from "
        f"it{missing}"
    )


def refused(trainer: MethodTrainer, guard: Guard, context: RunContext, error: GuardError) -> None:
    """Write down why the guard stopped a run; no adapter is written."""
    if trainer.args.should_save:
        update_record(context.run, status="stopped by the guard", reason=str(error))
        update_record(context.run, guard=guard.facts())
        write_run_report(context.run, context.console)


def publish_adapter(trainer: MethodTrainer, run: Path) -> None:
    """Write the trained adapter; one that an earlier end of this run left there is replaced."""
    trainer.accelerator.wait_for_everyone()
    model = trainer.accelerator.unwrap_model(trainer.model)
    trainer.observers.before_saving(model, trainer.state.global_step)
    factors = trainer.whole_adapter()
    if trainer.args.should_save:
        with disk_full(run):
            staging = checkpoints.stage(run)
            save_adapter(model, staging, factors)
            checkpoints.sync_lines(run)
            checkpoints.remove(RunFolder(run).adapter)
            facts = {"run_id": trainer.identity.run_id, "step": trainer.state.global_step}
            checkpoints.publish(staging, RunFolder(run).adapter, **facts)
    trainer.accelerator.wait_for_everyone()


def last_evaluation(trainer: MethodTrainer, console: Console) -> float | None:
    """Return the loss on the held-out rows; ``None`` where a signal left it out."""
    try:
        return trainer.evaluate()["eval_loss"]
    except EvaluationLeftOut:
        console.print("a signal came after the last step: the last evaluation is left out")
        return None


def finish(trainer: MethodTrainer, context: RunContext, eval_loss: float | None) -> RunSummary:
    """Write and say how the run went.

    Args:
        trainer: Has made its last step.
        context: Of the run, whose folder holds the adapter by now.
        eval_loss: Of the last evaluation, if there was one.
    """
    run, console = context.run, context.console
    adapter = RunFolder(run).adapter
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    logged = [loss for loss in logged if math.isfinite(loss)]  # not those of steps left out
    summary = RunSummary(
        folder=run,
        adapter=adapter,
        steps=trainer.state.global_step,
        loss=logged[-1] if logged else None,
        eval_loss=eval_loss,
        seconds=time.monotonic() - context.started,
        peak_memory_bytes=peak_memory_bytes(trainer.accelerator.device),
    )
    if trainer.args.should_save:
        update_record(
            run,
            status="finished",
            steps=summary.steps,
            loss=summary.loss,
            eval_loss=eval_loss,
            seconds=round(summary.seconds, 2),
            peak_memory_bytes=summary.peak_memory_bytes,
            **card.closing_facts(run),
        )
    trainer.accelerator.wait_for_everyone()
    loss = "" if summary.loss is None else f", loss {summary.loss:.4f}"
    console.print(
        f"done: {summary.steps} steps in {summary.seconds:.1f} s{loss}; adapter in {adapter}"
    )
    if trainer.args.should_save:
        write_run_report(run, console)
        for line in next_commands(after_training(run)):
            console.print(visible(line))
    return summary


def after_training(run: Path) -> list[tuple[list[str], str]]:
    """Return what most people do with a finished run."""
    name = str(run)
    merged = ["merge", name, "--format", "bf16", "--out", f"{name}-merged"]
    return [
        (["gptoss-tune", "chat", name], "talk to it"),
        (["gptoss-tune", *merged], "one checkpoint to serve"),
        (["gptoss-tune", "push", name, "--repo", f"YOU/{run.resolve().name}"], "to the Hub"),
    ]


def write_run_report(run: Path, console: Console) -> None:
    """Write ``RUN/report.html``; a page that cannot be written costs the run nothing."""
    try:
        path = write_report([run])
    except GptossTuneError as error:
        console.print(f"no report was written: {error}", soft_wrap=True, markup=False)
    else:
        console.print(f"report: {path}", soft_wrap=True, highlight=False)
