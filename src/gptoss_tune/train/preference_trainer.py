"""Preference tuning on Transformers' ``Trainer``: the loss and figures of pairs and labels.

Of TRL's trainers nothing runs here, and each of them is an oracle: the tests hold our losses to
``DPOTrainer``, ``KTOTrainer``, ``CPOTrainer`` and ``ORPOTrainer`` on the same token ids. What keeps
them from being used (TRL 1.16, read and run):

- they tokenise by the chat template, which renders neither earlier turns nor calls as gpt-oss is
  served, and have no loss weight or channel for a token;
- packing is off: a row of padding for each answer;
- a started adapter gets a second, frozen copy named ``ref`` (4 GiB more at 120b and rank 16), and
  log-probabilities of the reference are cached under a hash of the model object;
- log-probabilities come from per-token tensors of all positions, prompts included;
- means are taken over a micro-batch and averaged over micro-batches and ranks, so a step depends on
  how it was cut; here it is the mean over the whole step's pairs, by their weights.

``SFTTrainer`` is used for supervised fine-tuning, where none of this matters (``train/sft.py``).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gptoss_tune.distributed import sum_over_ranks
from gptoss_tune.model.parallel.sharding import gather_nothing
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.loss import LossFunction
from gptoss_tune.train.metrics.by_source import SourceFigures
from gptoss_tune.train.preference.answers import answers_of, take
from gptoss_tune.train.preference.examples import write_examples
from gptoss_tune.train.preference.loss import PreferenceLoss
from gptoss_tune.train.preference.meter import PreferenceMeter
from gptoss_tune.train.preference.objectives import PreferenceMethod
from gptoss_tune.train.trainer import MethodTrainer


class PreferenceTrainer(MethodTrainer):
    """A trainer of pairs: the loss of a step is the mean over its pairs, by their weights."""

    def __init__(
        self,
        *args: Any,
        section: PreferenceMethod,
        reference: bool,
        loss: LossFunction,
        **kwargs: Any,
    ) -> None:
        """Take what ``MethodTrainer`` takes.

        Args:
            args: As there.
            section: The recipe's method.
            reference: Whether the rows have log-probabilities of a reference.
            loss: Of a micro-batch.
            kwargs: As there.
        """
        super().__init__(*args, **kwargs)
        self._loss = loss
        self._meters = {
            mode: PreferenceMeter(section, reference=reference, device=self.accelerator.device)
            for mode in ("train", "eval")
        }

    def weight_of(self, batch: dict[str, Any]) -> Tensor:
        """Return the summed weights of a batch's pairs or answers, scalar fp64."""
        return batch["sample_weights"].double().sum()

    def loss_of(
        self, model: torch.nn.Module, inputs: dict[str, Any], batch_only: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """Return the weighted sum of the pairs' losses, and the losses of their tokens."""
        outputs = self._loss(model, inputs)
        meter = self._meters["train" if model.training else "eval"]
        _, batch = take(inputs)
        meter.add(outputs.token_losses, outputs.loss_sum, batch, batch_only["channels"])
        if self.by_source is not None and not model.training:
            self._add_by_source(self.by_source, outputs.token_losses, batch, batch_only["sources"])
        return outputs.loss_sum, {"token_losses": outputs.token_losses}

    @torch.no_grad()
    def _add_by_source(
        self,
        figures: SourceFigures,
        token_losses: Tensor,
        batch: dict[str, Any],
        sources: Tensor,
    ) -> None:
        """Count an evaluation's pairs or answers by their source; a loss of others has no parts."""
        answers = answers_of(token_losses, batch)
        if not len(answers.logps):
            return
        if isinstance(self._loss, PreferenceLoss):
            figures.add(self._loss.each(answers), batch["sample_weights"], sources)
        won = self._meters["eval"].won(answers)
        if won is not None:
            figures.add_won(won, sources)

    def conclude(self, context: RunContext) -> None:
        """Write some pairs as they were and as they are."""
        write_examples(self, context)

    def read_losses(self, mode: Literal["train", "eval"]) -> dict[str, float]:
        """Return the figures of ``PreferenceMeter`` since the last reset, of all ranks."""
        meter = self._meters[mode]
        return meter.read(sum_over_ranks(meter.sums))

    def reset_losses(self, mode: Literal["train", "eval"]) -> None:
        """Start averaging anew."""
        self._meters[mode].reset()


class KtoTrainer(PreferenceTrainer):
    """A trainer of labelled answers; the KL term of KTO's loss is that of the whole step.

    Before a step's first backward pass its mismatched documents go through the model without a
    gradient, all micro-batches and ranks of it, so the term depends on neither.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what ``PreferenceTrainer`` takes."""
        super().__init__(*args, **kwargs)
        # Another loss than KTO's own does without the term.
        self._needs_kl = isinstance(self._loss, PreferenceLoss)
        self._estimates: dict[str, list[float]] = {"train": [], "eval": []}

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Take the micro-batches of a step, and estimate its KL term; an evaluation has its own."""
        batches, weight = super().get_batch_samples(*args, **kwargs)
        if batches:
            self._estimate(batches, "train")
        return batches, weight

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, with the KL term of the whole held-out set."""
        kept = self._kl()
        try:
            self._estimate(dataloader, "eval")
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._set_kl(kept)

    def read_losses(self, mode: Literal["train", "eval"]) -> dict[str, float]:
        """Return the figures, and the mean of the KL term."""
        found, estimates = super().read_losses(mode), self._estimates[mode]
        if estimates:
            found["kl_estimate"] = sum(estimates) / len(estimates)
        return found

    def reset_losses(self, mode: Literal["train", "eval"]) -> None:
        """Start averaging anew."""
        super().reset_losses(mode)
        self._estimates[mode].clear()

    def _kl(self) -> Tensor | None:
        return self._loss.kl if isinstance(self._loss, PreferenceLoss) else None

    def _set_kl(self, kl: Tensor | None) -> None:
        if isinstance(self._loss, PreferenceLoss):
            self._loss.kl = kl

    @torch.no_grad()
    def _estimate(self, batches: Any, mode: Literal["train", "eval"]) -> None:
        """Set z0 for what follows: the mean log-ratio of mismatched answers, at least 0."""
        if not self._needs_kl:
            return
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        training = model.training
        model.eval()
        device = self.accelerator.device
        total = torch.zeros(2, dtype=torch.float64, device=device)
        try:
            for batch in batches:
                forward, rest = take(self._prepare_inputs(batch["kl"]))
                losses = model(**forward, use_cache=False).token_losses
                answers = answers_of(losses, rest)
                total[0] += (answers.logps - answers.reference).sum()
                # One that was cut before its first counted token says nothing.
                total[1] += (rest["positions"] >= 0).any(1).sum()
                if mode == "eval":  # as long as the evaluation, and left as one at a signal
                    self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        finally:
            model.train(training)
            if mode == "eval":  # in training the step's forward pass follows
                gather_nothing(model)
        total = sum_over_ranks(total)
        kl = (total[0] / total[1].clamp(min=1)).clamp(min=0)
        self._set_kl(kl)
        self._estimates[mode].append(float(kl))
