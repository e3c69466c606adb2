"""Time and memory of passes before the first step: of the reference, and to choose experts.

The reference is the model that is trained, with its adapters off or as they start, so nothing is
loaded for it. Its log-probabilities of the training and of the held-out data are computed before
the first step, whatever the number of epochs, and kept with the rendered data. So are the counts of
the experts' tokens, which choose those that get an adapter (``lora.experts``).
"""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_tune.plan.data_tokens import held_out_tokens, tokens_in_files
from gptoss_tune.plan.flops import Work
from gptoss_tune.plan.memory import forward_peak
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.recipe.recipe import chosen_count


@dataclass(frozen=True)
class ReferencePass:
    """Forward passes before the first step.

    Attributes:
        tokens: That go through the model; ``None`` where the size of the data is not known.
        hours: On all cards; ``None`` likewise.
        peak: Bytes of one GPU.
    """

    tokens: int | None
    hours: float | None
    peak: int


def reference_pass(
    setup: TrainingSetup, work: Work, tflops: float, epoch_tokens: int | None = None
) -> ReferencePass | None:
    """Return what the reference costs a run; ``None`` where the method has none.

    The adapters' share of the operations, 1 % at rank 16, is counted where they are off as well.

    Args:
        setup: What is trained, and how.
        work: Of the training, whose efficiency is assumed here too.
        tflops: Of one card.
        epoch_tokens: Tokens of the training data; ``None``: estimated from the files' sizes.
    """
    passes = setup.added.reference_passes
    if not passes:
        return None
    peak, once = forward_peak(setup), _tokens_of_all_data(setup, epoch_tokens)
    if once is None:
        return ReferencePass(None, None, peak)
    rate = setup.num_processes * tflops * 1e12 * work.efficiency / work.flops.forward
    return ReferencePass(passes * once, passes * once / rate / 3600, peak)


def choosing_pass(
    setup: TrainingSetup, work: Work, tflops: float, epoch_tokens: int | None = None
) -> ReferencePass | None:
    """Return what choosing experts costs a run, once for its data; ``None`` where all are adapted.

    A forward pass of the base over the training data, or over the first tokens of it. A run that
    starts from an adapter takes the experts that it has.

    Args:
        setup: What is trained, and how.
        work: As for ``reference_pass``.
        tflops: Likewise.
        epoch_tokens: Likewise.
    """
    lora = setup.lora
    if lora.experts == "all" or lora.init_from is not None:
        return None
    if chosen_count(lora, setup.architecture.experts) is None:
        return None
    peak, tokens = forward_peak(setup), epoch_tokens
    if tokens is None:
        found = tokens_in_files(setup.data.train, branches=setup.added.branches)
        share = 1 - (setup.data.eval_fraction or 0)
        tokens = None if found is None else int(found.count * share)
    most = lora.experts.tokens
    if most is not None:
        tokens = most if tokens is None else min(tokens, most)
    if tokens is None:
        return ReferencePass(None, None, peak)
    rate = setup.num_processes * tflops * 1e12 * work.efficiency / work.flops.forward
    return ReferencePass(tokens, tokens / rate / 3600, peak)


def _tokens_of_all_data(setup: TrainingSetup, epoch_tokens: int | None) -> int | None:
    """Return the tokens of the training and the held-out data."""
    data, branches = setup.data, setup.added.branches
    if epoch_tokens is None:
        found = tokens_in_files(data.train, branches=branches)
        training = None if found is None else found.count  # with the share that is held out
    else:
        training = int(epoch_tokens / (1 - (data.eval_fraction or 0)))
    if data.eval is None or training is None:
        return training
    held_out = held_out_tokens(data, branches=branches)
    return None if held_out is None else training + held_out
