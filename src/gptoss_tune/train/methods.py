"""Which methods of training there are: for each its trainer, its rows, its batches and its loss.

A recipe names one (``method.name``). What a method adds to a plan stands in ``plan/methods.py``,
which must not import torch. A new method is a section in ``recipe/schema.py``, an entry in
both tables, a trainer like ``sft.py``, and a reader of its rows where no format has them yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss_tune.display import visible
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.data.collator import Collator
from gptoss_tune.train.loss import LossFunction, weighted_token_loss
from gptoss_tune.train.sft import WeightedSftTrainer, sft_config
from gptoss_tune.train.trainer import MethodTrainer

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Method:
    """One method of training.

    Attributes:
        trainer: Its class; takes ``loss`` besides what every ``MethodTrainer`` does.
        arguments: From ``train``, ``held_out`` and ``dtype`` to the trainer's arguments.
        datasets: Renders the rows to train on, and those held out; every rank calls it.
        collator: From the padding token and ``data.packing`` to what makes batches of rows.
        loss: Of a micro-batch, unless the caller of ``train`` brings one.
    """

    trainer: Callable[..., MethodTrainer]
    arguments: Callable[..., Any]
    datasets: Callable[[RunContext], tuple[Dataset, Dataset | None]]
    collator: Callable[..., Callable[[Any], dict[str, Any]]]
    loss: LossFunction


def rendered_conversations(context: RunContext) -> tuple[Dataset, Dataset | None]:
    """Render the data on rank 0 first, so that the others read its cache.

    Raises:
        DataError: A row or file cannot be trained on.
    """
    recipe = context.recipe
    vocabulary, seed = load_vocabulary(context.base.path), recipe.train.seed

    def tell(line: str) -> None:
        context.console.print(visible(line), soft_wrap=True, highlight=False, markup=False)

    with context.state.main_process_first():
        train_set = load_dataset(
            recipe.data, split="train", vocabulary=vocabulary, seed=seed, tell=tell
        )
        eval_set = None
        if context.held_out:
            eval_set = load_dataset(
                recipe.data, split="eval", vocabulary=vocabulary, seed=seed, tell=tell
            )
    return train_set, eval_set


METHODS: dict[str, Method] = {
    "sft": Method(
        trainer=WeightedSftTrainer,
        arguments=sft_config,
        datasets=rendered_conversations,
        collator=Collator,
        loss=weighted_token_loss,
    ),
}
"""Every method by its name in a recipe."""
