"""The guard: a run that trains nothing, moves frozen weights or computes NaN is stopped.

Three watches, each with the figures of all ranks, so that all stop at the same step. What they saw
goes into each checkpoint (``guard.json``), so that a resumed run's card tells of the whole run.

- the first updates (``trainability``): every adapter gets a gradient and moves, nothing else does;
- every step: a loss or gradient that is not finite makes no update on any rank, and its rows are
  written down; after a few such steps in a row the run ends;
- warnings (``alarms``), which end nothing: the loss jumps, or a router sends all tokens to few
  experts.

It is asked before gradients are clipped: clipping divides by the norm, and with one NaN in it
every gradient is NaN and none can be named. Leaving out a step means dropping its gradients: the
optimizer then has nothing to apply and its moments stay as they are, while schedule and step count
go on. Rejected: the trainer's own filter for NaN, which hides the loss and still applies the step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.distributed import gather_over_ranks, rank, sum_over_ranks, world_size
from gptoss_tune.errors import GuardError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.model.parallel.sharding import share_of
from gptoss_tune.recipe.schema import GuardSection
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import update_record
from gptoss_tune.train.guard.gradients import GradientCheck, few, plain_names
from gptoss_tune.train.guard.warnings import LossWarnings
from gptoss_tune.train.observers.expert_load import entropies
from gptoss_tune.train.observers.observer import GradientStep, LogLine, MicroBatch, StepObserver


class Guard(StepObserver):
    """Watch one run, around each forward pass and before gradients are clipped.

    Attributes:
        alarms: What was warned of, and from which figures.
        skipped_steps: Steps that were left out.
    """

    file = "guard.json"
    kept = "findings of the guard"

    def __init__(
        self,
        section: GuardSection,
        run: Path,
        console: Console,
        row_sources: Callable[[list[int]], list[str]],
        *,
        judges_loss: bool = True,
    ) -> None:
        """Watch the run in the folder ``run``.

        Args:
            section: What is watched, and how strictly.
            run: Where batches and the record are written.
            console: Where warnings go; quiet on all ranks but the first.
            row_sources: From row numbers to ``file:line``.
            judges_loss: Whether a loss that jumps, or never changes, means anything. That of
                episodes lies around 0 whatever is learnt, and is 0 where answers are equally long.
        """
        self.alarms = LossWarnings(section, console)
        self.skipped_steps = 0
        self._section, self._run = section, run
        self._row_sources, self._judges_loss = row_sources, judges_loss
        self._watch: GradientCheck | None = None
        self._optimizer: Any = None
        self._batches: list[tuple[list[int], Tensor]] = []
        self._loss: Tensor | None = None
        self._in_row = self._updates = self._without_signal = self._without_rows = 0
        self._updates_before = self._checked_before = 0
        self._applied = False
        self._since_log: list[float] = []
        self._skipped_since_log = 0

    def before_forward(self, batch: MicroBatch) -> None:
        """Keep a micro-batch until its step is judged: a bad one is written down."""
        self._batches.append((batch.rows, batch.inputs["input_ids"]))

    def after_forward(self, loss: Tensor) -> None:
        """Add a micro-batch's share of the step's loss."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_gradients(self, step: GradientStep) -> None:
        """Judge a step by its loss and gradients; drop the gradients if they are not finite.

        Raises:
            GuardError: Too many steps in a row were not finite, or the loss never changes.
        """
        assert self._loss is not None  # a step has at least one micro-batch
        trained = [(n, p) for n, p in step.model.named_parameters() if p.grad is not None]
        norm = _total_norm(trained).to(self._loss.device)
        fine = torch.isfinite(norm) & torch.isfinite(self._loss)
        rows = fine.new_tensor(sum(len(numbers) for numbers, _ in self._batches), dtype=torch.long)
        seen = torch.stack((~fine, torch.where(fine, self._loss, 0.0), rows)).double()
        bad_ranks, loss_sum, rows_of_all = sum_over_ranks(seen).tolist()
        loss = loss_sum / world_size()
        batches, local_loss = self._batches, float(self._loss) if bad_ranks else loss
        self._batches, self._loss = [], None
        step.applied = not bad_ranks
        self._applied = step.applied and step.teaches
        self._without_rows += not rows_of_all
        self._without_signal += not step.teaches and rows_of_all > 0
        lr = max(group["lr"] for group in self._optimizer.param_groups)
        if self._watch is not None and self._updates < self._section.check_steps:
            self._watch.observe(updates=self._applied and lr > 0)
        if bad_ranks:
            self._leave_out(step, trained, batches, local_loss)
            return
        self._in_row = 0
        self._since_log.append(loss)
        if self._judges_loss:
            self.alarms.note_loss(loss, step.number, updates=lr > 0 and step.teaches)

    def before_saving(self, model: nn.Module, step: int) -> None:
        """See that what is to be written down is finite; every rank has to ask.

        Finite gradients can give an update that is not, and a step that would show it may not come.

        Raises:
            GuardError: A trained tensor holds NaN or infinity.
        """
        called = plain_names(model)
        names = [
            called[n]
            for n, p in model.named_parameters()
            if p.requires_grad and not bool(torch.isfinite(share_of(p)).all())
        ]
        names = list(dict.fromkeys(name for found in gather_over_ranks(names) for name in found))
        if names:
            raise GuardError(
                f"after step {step} trained tensors hold NaN or infinity, though no gradient did: "
                f"{few(names)}. They are not written to {self._run}, whose earlier checkpoints "
                "are whole; lower train.learning_rate, and raise train.adam_epsilon if it is "
                "below the default"
            )

    def figures(self, line: LogLine) -> dict[str, float]:
        """Return the mean loss without steps left out, and how evenly experts are used."""
        found: dict[str, float] = {}
        if self._skipped_since_log:
            finite = self._since_log
            found["loss"] = sum(finite) / len(finite) if finite else math.nan
            found["skipped_steps"] = float(self.skipped_steps)
        if line.expert_load.sum() > 0:
            found_entropies = entropies(line.expert_load)
            found["router_entropy"] = sum(found_entropies) / len(found_entropies)
            found["router_entropy_lowest"] = min(found_entropies)
        return found

    def after_log(self, line: LogLine) -> None:
        """Warn of routers that use few experts, and begin the next line."""
        self._since_log, self._skipped_since_log = [], 0
        if line.expert_load.sum() > 0:
            self.alarms.note_entropies(entropies(line.expert_load))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Start to watch; on a resumed run too, whose model was just read from a file."""
        self._optimizer = optimizer
        if self._section.check_steps:
            self._watch = GradientCheck(model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count an update; after enough of them the first watch ends.

        Raises:
            GuardError: A tensor does not train as it should.
        """
        lr = max(group["lr"] for group in self._optimizer.param_groups)
        self._updates += self._applied and lr > 0
        if self._watch is not None and self._updates == self._section.check_steps:
            self._judge(self._watch)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the frozen tensors once more, and write down what was seen.

        Raises:
            GuardError: A frozen tensor changed, a short run's adapters do not train, or no step
                made an update. A run that is stopped in its warm-up has made none yet.
        """
        trained = bool(self._updates + self._updates_before)
        if not trained and (self.skipped_steps or state.global_step >= state.max_steps):
            raise GuardError(self._nothing_trained(state.global_step))
        if self._watch is not None and self._updates:
            self._judge(self._watch)
        if trained:
            self._refuse_untouched(kwargs["model"])
        if state.is_world_process_zero:
            update_record(self._run, guard=self.facts())

    def facts(self) -> dict[str, Any]:
        """Return what was seen so far, for the run's record."""
        return {
            "updates_checked": max(self._checked(), self._checked_before),
            "skipped_steps": self.skipped_steps,
            "warnings": self.alarms.warnings,
            "router_entropy_by_layer": self.alarms.entropies,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, for a checkpoint."""
        return {
            **self.facts(),
            **self.alarms.state(),
            "updates": self._updates + self._updates_before,
            "steps_left_out_in_a_row": self._in_row,
            "steps_without_signal": self._without_signal,
            "steps_without_rows": self._without_rows,
        }

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Go on from what a checkpoint says was seen."""
        self.alarms.load(state)
        self.skipped_steps = int(state["skipped_steps"])
        self._in_row = int(state["steps_left_out_in_a_row"])
        self._updates_before = int(state["updates"])
        self._without_signal = int(state.get("steps_without_signal", 0))
        self._without_rows = int(state.get("steps_without_rows", 0))
        self._checked_before = int(state["updates_checked"])

    def _checked(self) -> int:
        return min(self._updates, self._section.check_steps)

    def close(self) -> None:
        """Take the hooks off the model."""
        if self._watch is not None:
            self._watch.close()

    def _nothing_trained(self, steps: int) -> str:
        """Return why a run of ``steps`` steps without an update is none."""
        if self.skipped_steps:
            return (
                f"all {self.skipped_steps} steps of this run were left out, because loss or "
                f"gradients were not finite: {self.alarms.warnings[-1]}. Nothing was trained; look "
                "at those rows, and check the base with `gptoss-tune verify`"
            )
        causes, remedies = [], []
        if self._without_rows:
            causes.append(
                f"in {self._without_rows} of the {steps} steps of this run no episode was left to "
                "train on: each was cut at a limit, which method.overlong masked leaves out, or "
                "its environment failed"
            )
            remedies.append("raise method.max_new_tokens, or set method.overlong to counted")
        if self._without_signal:
            causes.append(
                f"in {self._without_signal} of the {steps} steps of this run no group of episodes "
                "had rewards that differ among those trained"
            )
            remedies.append(
                "take prompts that are answered well now and then, or rewards that tell such "
                "answers apart"
            )
        if causes:
            return (
                f"{'; '.join(causes)}; any others made no update. Nothing was trained; read the "
                f"episodes in {RunFolder(self._run).rollouts}, and {'; '.join(remedies)}"
            )
        return (
            f"none of the {steps} steps of this run had a learning rate above 0. Nothing was "
            f"trained, and no adapter was written to {self._run}; shorten the warm-up, or train "
            "for more steps"
        )

    def _refuse_untouched(self, model: nn.Module) -> None:
        """See that the adapters differ from none; every rank has to ask.

        Raises:
            GuardError: Every B is zero, so that the adapted model is the base.
        """
        trained = [p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n]
        moved = [share_of(p.detach()).any().long() for p in trained]
        if moved and not int(sum_over_ranks(torch.stack(moved)).sum()):
            raise GuardError(
                f"after {self._updates + self._updates_before} updates every lora_B is still zero: "
                f"the adapter changes nothing of the base, and is not written to {self._run}. The "
                "updates are too small to be held; raise train.learning_rate, and lower "
                "train.adam_epsilon if it is above the default"
            )

    def _judge(self, watch: GradientCheck) -> None:
        watch.close()
        lines = [line for found in gather_over_ranks(watch.verdict()) for line in found]
        lines = list(dict.fromkeys(lines))
        if lines:
            more = [f"... and {len(lines) - 40} more"] if len(lines) > 40 else []
            raise GuardError(
                f"the run does not train what its recipe says, after {self._updates} updates:\n  "
                + "\n  ".join(lines[:40] + more)
                + f"\nno adapter was written to {self._run}; this is a fault of the model, of an "
                "adapter or of a library, and not of the data (guard.check_steps: 0 trains on)"
            )

    def _leave_out(
        self,
        event: GradientStep,
        trained: list[tuple[str, nn.Parameter]],
        batches: list[tuple[list[int], Tensor]],
        loss: float,
    ) -> None:
        model, step = event.model, event.number
        called = plain_names(model)
        names = [called[n] for n, p in trained if not bool(_gradient(p).isfinite().all())]
        for parameter in model.parameters():
            parameter.grad = None
        self.skipped_steps += 1
        self._skipped_since_log += 1
        self._in_row += 1
        rows = [row for numbers, _ in batches for row in numbers]
        path = RunFolder(self._run).nonfinite / f"step-{step}-rank-{rank()}.json"
        path.parent.mkdir(exist_ok=True)
        sources = self._row_sources(rows)
        kept = {
            "step": step,
            "rank": rank(),
            "loss": str(loss),
            "tensors_not_finite": names,
            "rows": rows,
            "sources": sources,
            "input_ids": [input_ids.tolist() for _, input_ids in batches],
        }
        write_text(path, json.dumps(kept) + "\n")
        everyone = gather_over_ranks((rank(), math.isfinite(loss), names, sources))
        text = _describe(step, everyone)
        if self._in_row <= self._section.max_nonfinite_steps:
            self.alarms.warn(f"{text}; no update was made, the batch is kept in {path.parent}")
            return
        raise GuardError(
            f"{text}; that is {self._in_row} steps in a row without an update "
            f"(guard.max_nonfinite_steps: {self._section.max_nonfinite_steps}). No checkpoint "
            f"holds any of them, and the batches are kept in {path.parent}; look at those rows, "
            "lower train.learning_rate, or check the base with `gptoss-tune verify`"
        )


def _describe(step: int, everyone: list[tuple[int, bool, list[str], list[str]]]) -> str:
    """Return the line that names step, ranks, tensors and rows of a step that is not finite."""
    guilty = [entry for entry in everyone if not entry[1]] or everyone
    what = "loss" if any(not entry[1] for entry in everyone) else "gradient"
    ranks = ", ".join(str(entry[0]) for entry in guilty)
    names = list(dict.fromkeys(name for entry in everyone for name in entry[2]))
    # Ranks that share rows name the same ones.
    rows = list(dict.fromkeys(source for entry in guilty for source in entry[3]))
    tensors = f"; not finite: the gradients of {few(names)}" if names else ""
    return f"step {step}, rank {ranks}: the {what} is not finite{tensors}; rows {few(rows)}"


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return this rank's part of a parameter's gradient."""
    assert parameter.grad is not None  # only parameters with one are asked
    return share_of(parameter.grad)


def _total_norm(trained: list[tuple[str, nn.Parameter]]) -> Tensor:
    """Return the norm of this rank's gradients; not finite as soon as one value is not."""
    if not trained:
        return torch.zeros(())
    return nn.utils.get_total_norm([_gradient(parameter) for _, parameter in trained])
