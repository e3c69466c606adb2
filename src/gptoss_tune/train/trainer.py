"""What every method of training shares: rows, observers, checkpoints, resume.

The loop, distribution, schedule and optimizers are Transformers'; a method adds its loss, and what
it shows of it (``sft.py``). Ours is what they lack for gpt-oss: losses averaged over the whole
optimizer step, checkpoints that are complete or absent, adapters saved without a pickle beside
them, and observers that see each step before its gradients are clipped.

A method is a subclass of ``MethodTrainer`` and of the trainer of its library, in this order, so
that what is shared here comes first and ``super()`` reaches the library's.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import gather_object
from torch import Tensor
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from gptoss_tune.distributed import sum_over_ranks
from gptoss_tune.model.parallel.sharding import gather_nothing, is_sharded, whole_factors
from gptoss_tune.run import checkpoints
from gptoss_tune.run.checkpoints import disk_full
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.data.collator import BATCH_ONLY, NumberedRows
from gptoss_tune.train.data.sampler import DatasetWithFiller, EpochSampler, MicroBatchSampler
from gptoss_tune.train.distributed.context_groups import ContextGroups
from gptoss_tune.train.distributed.signals import EvaluationLeftOut
from gptoss_tune.train.metrics.by_source import HeldOut, SourceFigures
from gptoss_tune.train.observers.observer import MicroBatch
from gptoss_tune.train.observers.observers import StepObservers
from gptoss_tune.train.resume.adapter_files import save_adapter
from gptoss_tune.train.resume.changes import Identity
from gptoss_tune.train.resume.state import (
    load_adapter,
    load_random_state,
    load_state,
    random_state,
    save_random_states,
    save_state,
)

if TYPE_CHECKING:
    from gptoss_tune.train.best.selection import Selection
    from gptoss_tune.train.context import RunContext

_LINES_KEPT = 64
"""Lines of metrics that a checkpoint's ``trainer_state.json`` keeps, the newest."""


class OwnIntervals(TrainerCallback):
    """A resumed run logs, saves and evaluates as its recipe says, not as its checkpoint's did."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the intervals from the arguments; the state was just read from the checkpoint."""
        state.compute_steps(args, state.max_steps)


class MethodTrainer(Trainer):
    """A ``Trainer`` for gpt-oss: staged checkpoints, exact resume, rows dealt over the ranks.

    Attributes:
        left_out: Steps whose evaluation was ended by a signal.
        teaches: Whether the step at hand has anything to learn from.
        applied: Whether the observers left its gradients to make an update, once they were asked.
    """

    teaches = applied = True

    def __init__(
        self,
        *args: Any,
        observers: StepObservers,
        identity: Identity,
        groups: ContextGroups,
        held_out: HeldOut,
        selection: Selection | None = None,
        **kwargs: Any,
    ) -> None:
        """Take what the library's trainer takes.

        Args:
            args: Of the library's trainer.
            observers: Asked at every step.
            identity: Of the run, for its checkpoints.
            groups: Which processes share a row: they are dealt the same ones.
            held_out: What is told of held-out rows beside their loss.
            selection: Looks at evaluations for the best weights and an early end.
            kwargs: Of the library's trainer; the model has adapters.
        """
        super().__init__(*args, **kwargs)
        self.observers, self.identity, self.groups = observers, identity, groups
        steps = int(identity.fingerprint["steps"])
        if self.args.get_warmup_steps(steps) >= steps:
            # A share of the few steps of a small data set, rounded up to all of them.
            self.args.warmup_steps = steps - 1
        self.selection = selection
        for callback in (OwnIntervals(), observers):
            self.add_callback(callback)
        # compute_loss divides by the weight of the whole step, so nothing else may divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        # Our display speaks; the trainer would print the same figures as a dictionary.
        self.remove_callback(PrinterCallback)
        sharded: Any = self.model
        if is_sharded(sharded):
            # Autocast and nothing else: the model is spread already, and DDP would copy it.
            self.accelerator.prepare_model(sharded, device_placement=False, evaluation_mode=True)
        self.left_out: list[int] = []
        self._eval_collator = held_out.collator or self.data_collator
        names = held_out.sources
        self.by_source = SourceFigures(names, self.accelerator.device) if names else None

    @abstractmethod
    def loss_of(
        self, model: torch.nn.Module, inputs: dict[str, Any], batch_only: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """Return the summed loss of a micro-batch, scalar fp32, and what the model gave.

        Args:
            model: Called once, as DDP and FSDP2 wrap it.
            inputs: Of the collator, without ``batch_only``.
            batch_only: What the collator added for the trainer (``data.collator.BATCH_ONLY``).
        """

    @abstractmethod
    def read_losses(self, mode: Literal["train", "eval"]) -> dict[str, float]:
        """Return the mean losses since the last ``reset_losses``; every rank has to ask.

        ``mean_loss`` is the loss as the method averages it; other names become figures.
        """

    @abstractmethod
    def reset_losses(self, mode: Literal["train", "eval"]) -> None:
        """Start averaging anew."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of the rows: seed, epoch and curriculum decide it, never the ranks."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        phases = np.array(dataset["phase"]) if "phase" in dataset.column_names else None
        return EpochSampler(len(dataset), seed=self.args.data_seed or 0, phases=phases)

    def weight_of(self, batch: dict[str, Any]) -> Tensor:
        """Return by how much a micro-batch counts in the mean of its step, scalar fp64."""
        return batch["loss_weights"].double().sum()

    def conclude(self, context: RunContext) -> None:
        """Look at the trained model once more; its adapter is on disk, and every rank calls it."""

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        weight = torch.stack([self.weight_of(batch).to(device) for batch in batch_samples]).sum()
        return self.accelerator.reduce(weight, reduction="sum")  # pyright: ignore[reportReturnType]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the step's mean loss, scalar fp32."""
        training = model.training
        batch_only = {name: inputs.pop(name, None) for name in BATCH_ONLY}
        if training:
            batch = MicroBatch(inputs, batch_only["rows"], batch_only["counts"])
            self.observers.before_forward(batch)
        loss_sum, outputs = self.loss_of(model, inputs, batch_only)
        if num_items_in_batch is None:
            num_items_in_batch = self.weight_of(inputs)
        weight = torch.as_tensor(num_items_in_batch).clamp(min=1e-12)
        loss = loss_sum / weight.to(loss_sum)
        if training:
            # DDP and FSDP average gradients over ranks; the denominator is already that of all.
            loss = loss * self.accelerator.num_processes
            self.observers.after_forward(loss)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train one micro-batch; the trainer's running loss could never leave a NaN again."""
        return super().training_step(*args, **kwargs).nan_to_num(0.0, 0.0, 0.0)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Show the step's gradients to the observers, then clip what they left."""
        step = self.state.global_step + 1
        self.applied = self.observers.on_gradients(model, step, teaches=self.teaches)
        return super()._clip_grad_norm(model)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """Deal the rows to the groups of ranks; those that are trained on are numbered."""
        order = self._get_train_sampler(dataset) if is_training else range(len(dataset))
        device, groups = self.accelerator.device, self.groups
        return DataLoaderShard(
            DatasetWithFiller(NumberedRows(dataset) if is_training else dataset),
            device=device,
            batch_sampler=MicroBatchSampler(
                order, batch_size, ranks=groups.data_ranks, rank=groups.data_rank
            ),
            collate_fn=self.data_collator if is_training else self._eval_collator,
            pin_memory=device.type == "cuda",
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; a run resumed at its last step has none left to train."""
        selection = self.selection
        if selection is not None and selection.pay("held_out"):
            self._evaluate(None, None)
        if selection is not None and selection.needs_first(self.state.global_step):
            # The library restores the random state after this, with the first rows.
            self._load_rng_state(kwargs["resume_from_checkpoint"])
            self._save_checkpoint(kwargs["model"], kwargs["trial"])
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if self.control.should_training_stop or (selection is not None and selection.over):
            return
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log with every checkpoint and at the end; leave the last evaluation to ``train.run``.

        The trainer sums losses since the last line and keeps no sum in a checkpoint: of a line that
        spans one, a resumed run would lack the first steps. The run evaluates when its adapter is
        safe, and once.
        """
        ends = self.state.global_step >= self.state.max_steps
        ended = ends or self.control.should_training_stop
        self.control.should_log |= self.control.should_save or ended
        self.control.should_evaluate &= not ends
        # It may become a checkpoint by what is measured now.
        self.control.should_log |= self.control.should_evaluate and self.selection is not None
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; the loss is the mean over all weights of the set, not over its batches."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            gather_nothing(self.model)
        logs = self.read_losses("eval")
        if self.by_source is not None:
            logs |= self.by_source.read(sum_over_ranks(self.by_source.sums))
        self._reset_evaluation()
        assert output.metrics is not None
        if "mean_loss" in logs:
            output.metrics[f"{prefix}_loss"] = logs.pop("mean_loss")
        output.metrics.update({f"{prefix}_{name}": value for name, value in logs.items()})
        return output

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate between two steps; an evaluation that a signal ends is left out."""
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationLeftOut:
            self._reset_evaluation()  # half an evaluation says nothing
            self.control.should_evaluate = False  # nor does a second half, at the end of an epoch
            if self.selection is None:
                self.left_out.append(self.state.global_step)
            else:
                self.selection.owe("held_out", self.control)
            return {}

    def _reset_evaluation(self) -> None:
        self.reset_losses("eval")
        if self.by_source is not None:
            self.by_source.reset()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the method's losses and the observers' figures to a line of training metrics."""
        # Of the steps since the last start alone, and 0 where there were none.
        logs.pop("train_loss", None)
        if "loss" in logs:
            losses = self.read_losses("train")
            self.reset_losses("train")
            losses.pop("mean_loss", None)
            logs.update(losses)
            step = self.state.global_step
            self.observers.log(logs, step, last=step == self.state.max_steps)
        Trainer.log(self, logs, start_time)
        # Every checkpoint holds these lines; the whole history is the metrics' file.
        del self.state.log_history[:-_LINES_KEPT]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter alone, whole: the tokenizer is the base's, arguments are the recipe's.

        Every rank has to call it, for an adapter that is spread over them; the first one writes.
        """
        factors = self.whole_adapter()
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_adapter(self.accelerator.unwrap_model(self.model), folder, factors)

    def whole_adapter(self) -> dict[str, Tensor] | None:
        """Return the factors of a model that is spread over ranks, put together; else ``None``.

        Every rank has to ask; the first one gets them.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        return whole_factors(model) if is_sharded(model) else None

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        """Leave the model where it was built, on its device."""

    def _get_output_dir(self, trial: object) -> str:
        return str(RunFolder(Path(str(self.args.output_dir))).staging)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """Stage, hash and rename a checkpoint, then drop the oldest ones."""
        self.observers.before_saving(
            self.accelerator.unwrap_model(self.model), self.state.global_step
        )
        run = Path(str(self.args.output_dir))
        final = RunFolder(run).checkpoint(self.state.global_step)
        staged = RunFolder(run).staging / final.name
        with disk_full(run):
            if self.args.should_save:
                checkpoints.stage(run)
            self.accelerator.wait_for_everyone()
            Trainer._save_checkpoint(self, model, trial)  # pyright: ignore[reportArgumentType]
            self.observers.save(staged, writes=self.args.should_save)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                facts = self.identity.manifest(self.state.global_step)
                checkpoints.sync_lines(run)
                checkpoints.publish(staged, final, **facts)
                needed = [] if self.selection is None else [self.selection.needed_by]
                checkpoints.prune(run, self.args.save_total_limit or 1, *needed)
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_state(
            Path(output_dir),
            model=self.accelerator.unwrap_model(self.model),
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            writes=self.args.should_save,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_state(
                Path(checkpoint),
                model=self.accelerator.unwrap_model(self.model),
                optimizer=self.optimizer,
                scheduler=self.lr_scheduler,
            )

    def _save_rng_state(self, output_dir: str) -> None:
        states = gather_object([random_state(self.accelerator.device)])
        if self.args.should_save:
            save_random_states(Path(output_dir), states)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            rank, device = self.accelerator.process_index, self.accelerator.device
            load_random_state(Path(checkpoint), rank, device)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        unwrapped = self.accelerator.unwrap_model(self.model if model is None else model)
        load_adapter(Path(resume_from_checkpoint), unwrapped)
