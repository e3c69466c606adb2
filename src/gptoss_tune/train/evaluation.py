"""Evaluation callback: between two steps, and training computes the same with and without.

Between two steps, or before the first one, the model that is being trained answers the recipe's
prompts by its own forward pass. Weights, gradients, random state, modes and the figures of the
steps stay as they are: a run with evaluations has bit for bit the losses of one without. Results go
to ``RUN/evaluation/step-N.json`` and, as figures, to the metrics.

Loading the newest checkpoint into a second process was the alternative: it evaluates what will be
loaded, but needs the memory of a second model, which a GPU in training does not have.
"""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.display import visible
from gptoss_tune.distributed import gather_over_ranks
from gptoss_tune.evaluate.evaluator import figures
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.evaluate.tables import one_line
from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.strict_json import read_object, to_text
from gptoss_tune.report.safety.page import write_safety_page
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import update_record
from gptoss_tune.safety.evaluator import SafetyEvaluator
from gptoss_tune.safety.figures import safety_figures, safety_lines, safety_record
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.distributed.context_groups import whole_rows
from gptoss_tune.train.metrics.step_metrics import StepMetrics
from gptoss_tune.train.trainer import MethodTrainer


class Evaluation(TrainerCallback):
    """Evaluate at the start, every ``eval_steps`` and at the end."""

    def __init__(
        self,
        evaluator: SafetyEvaluator,
        context: RunContext,
        trainer: MethodTrainer,
        metrics: StepMetrics,
    ) -> None:
        """Evaluate the model of ``trainer``; a signal ends it.

        Args:
            evaluator: Has the questions.
            context: Of the run.
            trainer: Trains the model.
            metrics: Whose throughput leaves the time of evaluations out.
        """
        recipe = context.recipe
        self._evaluator, self._section, self._trainer = evaluator, recipe.evaluation, trainer
        self._fresh = recipe.lora.init_from is None
        self._run, self._console = context.run, context.console
        self._stop, self._watch = context.stop, context.watch
        self._metrics = metrics
        self._evaluated: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate before the first step; a resumed run did so when it started.

        One that a signal stopped in an evaluation on which its end hangs makes up for it.
        """
        selection = self._trainer.selection
        owed = selection is not None and selection.pay("answers")
        if owed or (self._section.at_start and state.global_step == 0):
            self._evaluate_or_owe(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate where the recipe says so; after the last step the adapter is saved first."""
        every, step = self._section.eval_steps, state.global_step
        if every is not None and step % every == 0 and step < state.max_steps:
            self._evaluate_or_owe(state, control)

    def finish(self) -> None:
        """Evaluate the finished model, whose adapter is on disk, unless it just was."""
        if self._evaluated != self._trainer.state.global_step:
            self._evaluate(self._trainer.state, self._trainer.control)

    def finish_best(self, step: int) -> None:
        """Evaluate the weights of an earlier step, which the model holds by now, if nobody did.

        They are the published ones, and prompts may be asked at other steps than chose them.
        """
        known = RunFolder(self._run).evaluation(step).is_file()
        if not gather_over_ranks(known)[0]:
            self._evaluate(self._trainer.state, self._trainer.control, published=step)

    def tell_again(self, step: int) -> None:
        """Write the evaluation of an earlier step into the record: its weights are published.

        Where they were not evaluated, the page of the last weights says whose it is.
        """
        files, last = RunFolder(self._run), self._evaluated
        if not self._trainer.state.is_world_process_zero:
            return
        if files.evaluation(step).is_file():
            self._record(read_object(files.evaluation(step), folder=self._run))
        elif last is not None and files.evaluation(last).is_file():
            report = read_object(files.evaluation(last), folder=self._run)
            if "safety" in report:
                write_safety_page(self._run, report, published=step)

    def _record(self, report: dict[str, Any]) -> None:
        found = figures(report) | safety_figures(report)
        policies = {"policies": report["policies"]} if "policies" in report else {}
        update_record(self._run, evaluation={"step": report["step"], **found, **policies})
        if "safety" in report:
            update_record(self._run, safety=safety_record(report))
            write_safety_page(self._run, report)

    def _asked(self) -> bool:
        """Say whether to leave the evaluation, as it asks before every batch or token."""
        self._watch.note_progress()
        return self._stop.requested

    def _evaluate_or_owe(self, state: TrainerState, control: TrainerControl) -> None:
        """Evaluate; what a signal ends is owed where the best weights hang on it."""
        selection = self._trainer.selection
        if not self._evaluate(state, control) and selection is not None and state.global_step:
            selection.owe("answers", control)

    def _evaluate(
        self, state: TrainerState, control: TrainerControl, published: int | None = None
    ) -> bool:
        """Evaluate, and return whether it was done, which a signal ends.

        Args:
            state: Of the trainer.
            control: Of the trainer.
            published: Step of the weights that are evaluated after the last step; ``None``: the
                step at hand. The metrics are past it, so it gets no line there.
        """
        started = time.monotonic()
        trainer, step = self._trainer, state.global_step if published is None else published
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        try:
            with whole_rows(model, trainer.groups):
                report = self._evaluator.run(
                    model,
                    step=step,
                    device=trainer.accelerator.device,
                    is_base=self._fresh and step == 0,
                    should_stop=self._asked,
                )
        except Stopped:
            self._console.print(f"step {step}: the evaluation is left out, the run is stopping")
            return False
        finally:
            self._metrics.leave_out(time.monotonic() - started)
        found = figures(report) | safety_figures(report)
        if state.is_world_process_zero:
            file = RunFolder(self._run).evaluation(step)
            file.parent.mkdir(exist_ok=True)
            write_text(file, to_text(report, ascii_only=False) + "\n")
            self._record(report)
        if published is None:
            # Logging marks the step's own metrics as written, which they may not be yet.
            unwritten = control.should_log
            trainer.log(found)
            control.should_log = unwritten
            self._evaluated = step
        for text in (one_line(report), *safety_lines(report)):
            if text:
                line = f"step {step}: {visible(text)}"
                self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        return True
