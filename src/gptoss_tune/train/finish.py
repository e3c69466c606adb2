"""The end of a run and its artifacts: finished, stopped by a signal, or stopped by the guard.

Each leaves a record and a report. The adapter is written before the evaluations that come last, so
that a signal in them costs figures and no training. With ``keep_best`` it is that of the best
evaluation so far; where the last one turns out to be the best, the last weights take its place.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from gptoss_tune.display import visible
from gptoss_tune.errors import GptossTuneError, GuardError, RunInterrupted
from gptoss_tune.report.page import write_report
from gptoss_tune.run import card, checkpoints
from gptoss_tune.run.checkpoints import disk_full
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import update_record
from gptoss_tune.terminal import next_commands
from gptoss_tune.train.best.selection import HELD_OUT
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.distributed.signals import EvaluationLeftOut
from gptoss_tune.train.guard.guard import Guard
from gptoss_tune.train.metrics.step_metrics import peak_memory_bytes
from gptoss_tune.train.resume.adapter_files import save_adapter
from gptoss_tune.train.resume.state import load_adapter
from gptoss_tune.train.trainer import MethodTrainer
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from gptoss_tune.train.best.selection import Selection
    from gptoss_tune.train.evaluation import Evaluation


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


def complete(
    context: RunContext, trainer: MethodTrainer, asked: Sequence[Evaluation], *, held_out: bool
) -> float | None:
    """Train, write the adapter, then evaluate; return the published one's loss on held-out rows."""
    checkpoint = context.start.checkpoint
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if context.stop.stopped:
        interrupted(trainer, context)
    selection = trainer.selection
    if selection is None or selection.best is None:
        publish_adapter(trainer, context.run)
        trainer.conclude(context)
        eval_loss = _last_evaluations(context, trainer, asked, held_out=held_out)
    else:
        before = _published_step(trainer, selection)
        _publish(context, trainer, before)
        last = _last_evaluations(context, trainer, asked, held_out=held_out)
        chosen = _published_step(trainer, selection)
        if chosen != before:
            _publish(context, trainer, chosen)
        eval_loss = last
        if chosen != trainer.state.global_step:
            eval_loss = selection.at_best.get("held_out", {}).get("eval_loss")
            _look_at_best(context, trainer, chosen)
            for evaluation in asked:
                evaluation.finish_best(chosen)
        trainer.conclude(context)
    if selection is not None:
        _tell(context, trainer, selection, asked)
    return eval_loss


def _published_step(trainer: MethodTrainer, selection: Selection) -> int:
    """Return the step of the best weights; the last one where no evaluation gave a number."""
    assert selection.best is not None
    return selection.best.step or trainer.state.global_step


def _best_step(trainer: MethodTrainer) -> int | None:
    """Return the step that ``keep_best`` chose; ``None`` where it chose none."""
    selection = trainer.selection
    return None if selection is None or selection.best is None else selection.best.step or None


def _publish(context: RunContext, trainer: MethodTrainer, step: int) -> None:
    """Make the weights of a step ``RUN/adapter``: those in the model, or a checkpoint's."""
    if step == trainer.state.global_step:
        publish_adapter(trainer, context.run)
        return
    run = RunFolder(context.run)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        source = run.checkpoint(step)
        checkpoints.verify(source, trainer.identity.run_id)
        with disk_full(context.run):
            staging = checkpoints.stage(context.run)
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                shutil.copyfile(source / name, staging / name)
            checkpoints.sync_lines(context.run)
            checkpoints.remove(run.adapter)
            facts = {"run_id": trainer.identity.run_id, "step": step}
            checkpoints.publish(staging, run.adapter, **facts)
    trainer.accelerator.wait_for_everyone()


def _look_at_best(context: RunContext, trainer: MethodTrainer, step: int) -> None:
    """Put the published weights into the model, for what looks at it once more."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    load_adapter(RunFolder(context.run).checkpoint(step), model)


def _last_evaluations(
    context: RunContext, trainer: MethodTrainer, asked: Sequence[Evaluation], *, held_out: bool
) -> float | None:
    """Evaluate the last weights, where the run did not end by such an evaluation."""
    for evaluation in asked:
        evaluation.finish()
    if not held_out:
        return None
    step = trainer.state.global_step
    if trainer.selection is not None and trainer.selection.over:
        for row in reversed(trainer.state.log_history):
            if row.get("step") == step and HELD_OUT & row.keys():
                return row.get("eval_loss")
    return last_evaluation(trainer, context.console)


def _tell(
    context: RunContext,
    trainer: MethodTrainer,
    selection: Selection,
    asked: Sequence[Evaluation],
) -> None:
    """Say and write down which weights were published, and why the run ended."""
    console, facts = context.console, selection.facts(trainer.state)
    step, planned = trainer.state.global_step, trainer.state.max_steps
    patience, best = selection.patience, selection.best
    if patience is not None and selection.stopped_early(trainer.state):
        rates = [
            row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row
        ]
        rate = rates[-1] if rates else None
        told = (
            f"stopped early after step {step} of {planned}: {patience.waited} evaluations without "
            f"a better {patience.metric} than "
            + (f"{patience.value:.6g} at step {patience.step}" if patience.step else "no number")
        )
        if rate is not None:
            schedule = context.recipe.train.lr_scheduler_type
            told += (
                f"; the learning rate had come to {rate:.3g} of a {schedule} schedule of "
                f"{planned} steps"
            )
        facts["early_stopping"] |= {"step": step, "planned": planned, "reason": told}
        console.print(told, soft_wrap=True, highlight=False)
    if best is not None:
        told = (
            f"no evaluation gave a number for {best.metric}: the adapter is that of the last step"
        )
        if best.step:
            assert best.value is not None
            told = f"best: {best.metric} {best.value:.6g} at step {best.step} of {step}, which the "
            told += "adapter holds"
        console.print(told, soft_wrap=True, highlight=False)
        for evaluation in asked:
            if best.step and best.step != step:
                evaluation.tell_again(best.step)
    if trainer.args.should_save:
        update_record(context.run, **facts)


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
        return trainer.evaluate().get("eval_loss")
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
            **card.closing_facts(run, _best_step(trainer)),
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
