"""Group relative policy optimisation on Transformers' ``Trainer``.

A row of the data is a prompt, and what is trained on is played between two steps
(``train.rollouts.phase``). So one optimizer step is one call of ``training_step``, which walks the
micro-batches of its own: how many a step needs is known when its episodes are over, and not when a
recipe is written.

What makes a run one to trust: the prompts of a phase follow from the seed and a place that the
checkpoint keeps, chunks of episodes that are over are in a ledger, and a checkpoint between two
updates on one batch of episodes holds the rows that are not trained yet. TRL's ``GRPOTrainer`` was
the alternative (1.16, read and run): it merges adapters into named parameters to hand them to a
sampler, which packed experts have none of; corrects for a sampler's other log-probabilities with
vLLM alone; and its template for gpt-oss loses calls, and the thoughts before them.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from gptoss_tune.distributed import gather_over_ranks, max_over_ranks, rank, sum_over_ranks
from gptoss_tune.errors import CheckpointError, GuardError, RunInterrupted
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.files.digest import digest_of
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.jsonl import read_lines
from gptoss_tune.run.record import update_record
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.distributed.signals import EvaluationLeftOut
from gptoss_tune.train.grpo.meter import GrpoMeter
from gptoss_tune.train.grpo.reference import log_probabilities, reference_log_probabilities
from gptoss_tune.train.grpo.rows import Row, from_arrays, micro_batches, step_rows, to_arrays
from gptoss_tune.train.guard.checksum import checksum
from gptoss_tune.train.loss import LossFunction
from gptoss_tune.train.resume.changes import NOTED
from gptoss_tune.train.rollouts.episodes_file import write_episodes
from gptoss_tune.train.trainer import MethodTrainer

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import GrpoSection
    from gptoss_tune.train.rollouts.playing import Playing

PHASE = "phase.safetensors"
"""Of a checkpoint between two updates on one batch of episodes: the rows of the coming ones."""
_KEPT = "chunks of episodes that are over are kept"
_MADE_LATER = ("old_logps", "reference_logps")


class GrpoTrainer(MethodTrainer):
    """A trainer of episodes, which it plays between two steps."""

    def __init__(
        self,
        *args: Any,
        section: GrpoSection,
        playing: Playing,
        context: RunContext,
        loss: LossFunction,
        **kwargs: Any,
    ) -> None:
        """Take what ``MethodTrainer`` takes.

        Args:
            args: As there.
            section: The recipe's method.
            playing: Plays episodes, on this rank.
            context: Of the run.
            loss: Of a micro-batch.
            kwargs: As there.
        """
        super().__init__(*args, **kwargs)
        self._section, self._playing, self._context, self._loss = section, playing, context, loss
        self._max_length = context.recipe.data.max_length
        self._coming: dict[int, list[Row]] = {}
        self._drawn_finite = True
        device = self.accelerator.device
        self._meter, self._of_step = (
            GrpoMeter(device, reference=section.kl_weight > 0) for _ in range(2)
        )
        playing.save = lambda folder: self.save_model(str(folder))

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """Return something as long as an epoch has steps: the rows of a step are not known yet."""
        each = self._section.prompts_per_step if is_training else 1
        return torch.utils.data.DataLoader(range(-(-len(dataset) // each)))  # pyright: ignore[reportArgumentType]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        # A token's weight is a share of the whole step already.
        return torch.ones((), dtype=torch.float64, device=device)

    def weight_of(self, batch: dict[str, Any]) -> Tensor:
        """Return 1: the weights of a step's tokens are shares of its mean."""
        return torch.ones((), dtype=torch.float64)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: a step has no one batch that they could be told from."""
        return 0

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the step's micro-batches as one; at the first step of a phase, play it.

        Raises:
            RunInterrupted: A signal came in the rollouts before the first step.
        """
        _, weight = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step
        if step not in self._coming:
            saved = "; a checkpoint is saved first" if step else ""
            try:
                with self._context.stop.answering(f"leaving these rollouts, {_KEPT}{saved}"):
                    self._begin(step)
            except Stopped:
                self._leave(step, _KEPT)
                return [], weight
        each, groups = self.args.per_device_train_batch_size, self.groups
        rows = self._coming.pop(step)
        # A KL alone has no gradient where the adapters begin: at the reference itself.
        self.teaches = any(bool(row["advantages"].any()) for row in rows)
        self._drawn_finite = all(bool(np.isfinite(row["sampler_logps"]).all()) for row in rows)
        batches = micro_batches(rows, each, groups.data_ranks, groups.data_rank)
        return [{"micro_batches": batches}], weight

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; before the first step of a run its held-out prompts are played once.

        Raises:
            RunInterrupted: A signal came before the first step.
        """
        if self.state.global_step == 0 and self.eval_dataset is not None and not self._measured():
            try:
                with self._context.stop.answering("leaving the first evaluation; no step was made"):
                    self.evaluate()
            except EvaluationLeftOut:
                self._leave(0, "no episode of training was played yet")
        super()._run_epoch(*args, **kwargs)

    def _measured(self) -> bool:
        """Return whether an earlier start of the run has measured the untrained model."""
        path, found = RunFolder(self._context.run).metrics, False
        if rank() == 0 and path.is_file():
            lines = read_lines(path, lambda number, error: None, strict=False)
            found = any("eval_reward" in row for _, row in islice(lines, 1))
        return gather_over_ranks(found)[0]

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Train the micro-batches of a step; ranks meet in the last one's backward pass."""
        self._of_step.reset()
        batches, collate = inputs["micro_batches"], self.data_collator
        total = torch.zeros((), device=self.accelerator.device)
        for number, rows in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                total += super().training_step(model, collate(rows), num_items_in_batch)
        return total

    def loss_of(
        self, model: torch.nn.Module, inputs: dict[str, Any], batch_only: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """Return the sum of the objective over the tokens, by their shares of the step."""
        outputs: Any = self._loss(model, inputs)
        figures = getattr(outputs, "figures", None)
        if figures is not None:  # another loss than the method's own has none
            self._of_step.add(figures)
        return outputs.loss_sum, {"token_losses": outputs.token_losses}

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Stop a run whose episodes were not drawn from the weights that it trains.

        A step that is not finite by the trainer's doing is the guard's to judge: it is left out.

        Raises:
            GuardError: The step's mismatch is beyond the limit; it makes no update.
        """
        limit, step = self._section.mismatch_kl_limit, self.state.global_step + 1
        if limit is not None and not self._drawn_finite:
            raise GuardError(
                f"step {step}: the sampler gave log-probabilities of drawn tokens that are not "
                "finite, so nothing says whether its weights are those that are trained, and the "
                f"step made no update. Look at sampler {self._section.sampler}, and check the base "
                "with `gptoss-tune verify`; with method.mismatch_kl_limit null such steps are left "
                "out as guard.max_nonfinite_steps says"
            )
        norm = super()._clip_grad_norm(model)
        found = self._figures(self._of_step)
        measured = found.get("mismatch_kl", 0.0)
        if limit is not None and self.applied and not measured <= limit:  # nor is NaN
            raise GuardError(
                f"step {step}: the KL of sampler and trainer is {measured:.3g} nats a token over "
                f"{found['trained_tokens']:.0f} drawn tokens, "
                f"beyond method.mismatch_kl_limit {limit:g}: the episodes were not drawn from the "
                "weights that are trained, and the step made no update. Set method.replay_routing "
                "to true where it is not; with sampler server see that it runs this base with the "
                "precision of the recipe; raise method.mismatch_kl_limit, or set it to null, if "
                "the importance weights are to carry that much"
            )
        if self.applied:  # or one step's NaN would be the figure of the whole line
            self._meter.add(self._of_step.total)
        return norm

    def read_losses(self, mode: Literal["train", "eval"]) -> dict[str, float]:
        """Return the figures of ``GrpoMeter`` since the last reset, of all ranks."""
        return self._figures(self._meter) if mode == "train" else {}

    def reset_losses(self, mode: Literal["train", "eval"]) -> None:
        """Start averaging anew."""
        if mode == "train":
            self._meter.reset()

    @staticmethod
    def _figures(meter: GrpoMeter) -> dict[str, float]:
        return meter.read(sum_over_ranks(meter.sums), max_over_ranks(meter.maxima))

    def _begin(self, step: int) -> None:
        """Play the episodes of the coming steps, and make rows of them.

        Raises:
            Stopped: On all ranks.
        """
        section, playing = self._section, self._playing
        updates = min(section.updates, self.state.max_steps - step)
        playing.update(step)
        cursor = playing.observer.cursor
        phase = playing.rollouts.phase(
            updates * section.prompts_per_step, cursor, self._key(step, cursor)
        )
        advantages = {group.place: group.advantages(section) for group in phase.played}
        if rank() == 0:
            path = RunFolder(self._context.run).rollout(step + 1)
            write_episodes(path, "train", phase.played, advantages)
        each = section.prompts_per_step
        coming = {
            step + n: step_rows(
                phase.groups[n * each : (n + 1) * each],
                advantages,
                section,
                self._max_length,
                playing.dataset_of,
            )
            for n in range(updates)
        }
        for rows in coming.values():
            self._add_log_probabilities(rows)
        self._coming = coming
        playing.observer.note(phase)

    def _key(self, step: int, cursor: int) -> str:
        """Return a digest of what the episodes of a phase depend on: the weights above all."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        sums = [int(checksum(p)) for p in model.parameters() if p.requires_grad]
        settings = {n: v for n, v in self.identity.fingerprint.items() if n not in NOTED}
        return digest_of([step, cursor, sums, settings])

    @torch.no_grad()
    def _add_log_probabilities(self, rows: list[Row]) -> None:
        """Add those of the weights that drew, where several updates follow, and of the reference.

        Each rank adds them to the rows that it trains.
        """
        section, playing, groups = self._section, self._playing, self.groups
        if section.updates == 1 and not playing.reference:
            return
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        each, temperature = self.args.per_device_train_batch_size, section.temperature
        for some in micro_batches(rows, each, groups.data_ranks, groups.data_rank):
            if not some:
                continue
            batch = self._prepare_inputs(self.data_collator(some))
            found: dict[str, Tensor] = {}
            with self.compute_loss_context_manager():
                if section.updates > 1:
                    found["old_logps"] = log_probabilities(model, batch, temperature=temperature)
                if playing.reference:
                    found["reference_logps"] = reference_log_probabilities(
                        model, batch, temperature=temperature, start=playing.start
                    )
            for name, values in found.items():
                for row, of_row in zip(some, values.float().cpu().numpy(), strict=True):
                    row[name] = of_row[: len(row["input_ids"])].copy()
                    row[name][1:], row[name][0] = row[name][:-1].copy(), 0

    def _leave(self, step: int, kept: str) -> None:
        """End the run between two steps; what was played of a phase is in the ledger.

        Args:
            step: Steps made so far.
            kept: What is, where no step was made.

        Raises:
            RunInterrupted: No step was made that a checkpoint could hold.
        """
        run = RunFolder(self._context.run)
        if step == 0:
            if rank() == 0:
                update_record(self._context.run, status="stopped", steps=0)
            raise RunInterrupted(
                f"a signal ended the run before its first step; {kept}, the same command goes on"
            )
        self._context.stop.stopped = True
        self.control.should_training_stop = True
        there = gather_over_ranks(run.checkpoint(step).is_dir())[0]
        self.control.should_save = not there

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Play the held-out prompts, greedily, once each.

        Raises:
            EvaluationLeftOut: A signal came, on this rank or another.
        """
        prefix = kwargs.get("metric_key_prefix", "eval")
        try:
            groups, figures = self._playing.held_out(self.state.global_step)
        except Stopped:
            raise EvaluationLeftOut from None
        if rank() == 0:
            path = RunFolder(self._context.run).rollout(self.state.global_step)
            write_episodes(path, "eval", groups)
        metrics = {f"{prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(
            predictions=None,  # pyright: ignore[reportArgumentType]
            label_ids=None,
            metrics=metrics,
            num_samples=len(groups),
        )

    def conclude(self, context: RunContext) -> None:
        """Forget the ledger: everything is trained."""
        self._playing.rollouts.forget()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self._coming:
            return
        # What is added to a row, the rank that trains it has added.
        added = {
            (step, place): {name: row[name] for name in _MADE_LATER if name in row}
            for step, rows in self._coming.items()
            for place, row in enumerate(rows)
        }
        everyone = gather_over_ranks({place: values for place, values in added.items() if values})
        for (step, place), values in (item for one in everyone for item in one.items()):
            self._coming[step][place] |= values
        if self.args.should_save:
            save_file(to_arrays(self._coming), Path(output_dir) / PHASE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = None if checkpoint is None else Path(checkpoint) / PHASE
        if path is None or not path.is_file():
            return
        try:
            self._coming = from_arrays(load_file(path))
        except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
            raise CheckpointError(
                f"{path}: no readable rows of a phase ({error}); resume from another checkpoint"
            ) from error
