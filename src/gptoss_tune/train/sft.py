"""Supervised fine-tuning on TRL's ``SFTTrainer``.

The loop, distribution, schedule and optimizers are TRL's and Transformers'. Ours is what they lack
for gpt-oss: loss weights per token averaged over the whole optimizer step, losses by channel,
checkpoints that are complete or absent, and adapters saved without a pickle beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from trl import SFTTrainer

from gptoss_tune.model.sharding import gather_nothing, is_sharded, whole_factors
from gptoss_tune.run import checkpoints
from gptoss_tune.run.checkpoints import disk_full
from gptoss_tune.train.data.collator import NumberedRows
from gptoss_tune.train.data.sampler import DatasetWithFiller, EpochSampler, MicroBatchSampler
from gptoss_tune.train.distributed.signals import EvaluationLeftOut
from gptoss_tune.train.guard.guard import Guard
from gptoss_tune.train.loss import LossMeter, step_weight
from gptoss_tune.train.metrics.step_metrics import StepMetrics
from gptoss_tune.train.resume.changes import Identity
from gptoss_tune.train.resume.state import (
    load_adapter,
    load_random_state,
    load_state,
    random_state,
    save_random_states,
    save_state,
)

BATCH_ONLY = ("channels", "counts", "rows")
"""What a batch carries for the trainer, and the model does not take."""


class OwnIntervals(TrainerCallback):
    """A resumed run logs, saves and evaluates as its recipe says, not as its checkpoint's did."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the intervals from the arguments; the state was just read from the checkpoint."""
        state.compute_steps(args, state.max_steps)


class WeightedSftTrainer(SFTTrainer):
    """``SFTTrainer`` for batches of ``train.data.collator``: weighted losses, staged checkpoints.

    Attributes:
        left_out: Steps whose evaluation was ended by a signal.
    """

    def __init__(
        self, *args: Any, guard: Guard, books: StepMetrics, identity: Identity, **kwargs: Any
    ) -> None:
        """Take what ``SFTTrainer`` takes; the model is a ``GptOssForTuning`` with adapters."""
        super().__init__(*args, **kwargs)
        self.guard, self.books, self.identity = guard, books, identity
        for callback in (OwnIntervals(), guard, books):
            self.add_callback(callback)
        # compute_loss divides by the weight of the whole step, so nothing else may divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        # Our display speaks; the trainer would print the same figures as a dictionary.
        self.remove_callback(PrinterCallback)
        spread: Any = self.model
        if is_sharded(spread):
            # Autocast and nothing else: the model is spread already, and DDP would copy it.
            self.accelerator.prepare_model(spread, device_placement=False, evaluation_mode=True)
        self.left_out: list[int] = []
        self._meters = {mode: LossMeter(self.accelerator.device) for mode in ("train", "eval")}

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:  # pyright: ignore
        """Return the order of the rows: seed, epoch and curriculum decide it, never the ranks."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        phases = np.array(dataset["phase"]) if "phase" in dataset.column_names else None
        return EpochSampler(len(dataset), seed=self.args.data_seed or 0, phases=phases)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        weight = step_weight(batch_samples, device)
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
        channels, counts, rows = (inputs.pop(name) for name in BATCH_ONLY)
        self.guard.before_forward(inputs, rows, training=training)
        outputs = model(**inputs, use_cache=False)
        meter = self._meters["train" if training else "eval"]
        meter.add(outputs.token_losses, inputs["loss_weights"], channels)
        if num_items_in_batch is None:
            num_items_in_batch = inputs["loss_weights"].double().sum()
        weight = torch.as_tensor(num_items_in_batch).clamp(min=1e-12)
        loss = outputs.loss_sum / weight.to(outputs.loss_sum)
        if training:
            self.books.add(counts)
            # DDP and FSDP average gradients over ranks; the denominator is already that of all.
            loss = loss * self.accelerator.num_processes
            self.guard.after_forward(loss)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train one micro-batch; the trainer's running loss could never leave a NaN again."""
        return super().training_step(*args, **kwargs).nan_to_num(0.0, 0.0, 0.0)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Let the guard judge the step's gradients, then clip what it left."""
        step = self.state.global_step + 1
        self.books.before_clipping(model, step, self.guard)
        self.guard.before_clipping(model, step)
        self.books.end_step(applied=self.guard.applies)
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
        """Deal the rows to the ranks; those that are trained on are numbered."""
        order = self._get_train_sampler(dataset) if is_training else range(len(dataset))
        device, rank = self.accelerator.device, self.accelerator.process_index
        return DataLoaderShard(
            DatasetWithFiller(NumberedRows(dataset) if is_training else dataset),
            device=device,
            batch_sampler=MicroBatchSampler(
                order, batch_size, ranks=self.args.world_size, rank=rank
            ),
            collate_fn=self.data_collator,
            pin_memory=device.type == "cuda",
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; a run resumed at its last step has none left to train."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log with every checkpoint and at the end; leave the last evaluation to ``train.run``.

        The trainer sums losses since the last line and keeps no sum in a checkpoint: of a line that
        spans one, a resumed run would lack the first steps. The run evaluates when its adapter is
        safe, and once.
        """
        ends = self.state.global_step >= self.state.max_steps
        self.control.should_log |= self.control.should_save or ends
        self.control.should_evaluate &= not ends
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; the loss is the mean over all weights of the set, not over its batches."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            gather_nothing(self.model)
        logs = self._read_meter("eval")
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
            self._read_meter("eval")  # half an evaluation says nothing
            self.left_out.append(self.state.global_step)
            return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add losses by channel, throughput and memory to a line of training metrics."""
        # Of the steps since the last start alone, and 0 where there were none.
        logs.pop("train_loss", None)
        if "loss" in logs:
            channels = self._read_meter("train")
            channels.pop("mean_loss", None)
            logs.update(channels)
            logs.update(self.books.figures(self.state, self.guard))
        Trainer.log(self, logs, start_time)

    def _read_meter(self, mode: str) -> dict[str, float]:
        meter = self._meters[mode]
        reduced = self.accelerator.reduce(meter.state(), reduction="sum")
        return meter.read(reduced)  # pyright: ignore[reportArgumentType]

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
        return str(Path(str(self.args.output_dir)) / checkpoints.STAGING)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """Stage, hash and rename a checkpoint, then drop the oldest ones."""
        self.guard.before_saving(self.accelerator.unwrap_model(self.model), self.state.global_step)
        run = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        with disk_full(run):
            if self.args.should_save:
                checkpoints.stage(run)
            self.accelerator.wait_for_everyone()
            Trainer._save_checkpoint(self, model, trial)  # pyright: ignore[reportArgumentType]
            self.books.save(run / checkpoints.STAGING / name, writes=self.args.should_save)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.guard.save(run / checkpoints.STAGING / name)
                facts = self.identity.manifest(self.state.global_step)
                checkpoints.publish(run / checkpoints.STAGING / name, run / name, **facts)
                checkpoints.prune(run, self.args.save_total_limit or 1)
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


def save_adapter(model: Any, folder: Path, state_dict: dict | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` in PEFT's format."""
    model.save_pretrained(
        str(folder),
        state_dict=state_dict,
        safe_serialization=True,
        # Nothing of the vocabulary is trained; "auto" would ask the Hub about the base's.
        save_embedding_layers=False,
    )
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours comes with a push
