"""Which methods of training there are: for each its trainer, its rows, its batches and its loss.

A recipe names one (``method.name``). What a method adds to a plan stands in ``plan/methods.py``,
which must not import torch. A new method is a section in ``recipe/schema/methods.py``, an entry in
both tables, a trainer like ``sft.py`` or ``preference/``, and a reader of its rows where no format
has them yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from gptoss_tune.display import visible
from gptoss_tune.harmony.dataset.kinds import kind_of
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe.schema import (
    GrpoSection,
    KtoSection,
    LoraSection,
    MethodSection,
    reference_of,
)
from gptoss_tune.train.context import RunContext
from gptoss_tune.train.data.collator import Collator
from gptoss_tune.train.grpo.collator import GrpoCollator
from gptoss_tune.train.grpo.loss import GRPO_KEYS, GrpoLoss
from gptoss_tune.train.grpo_trainer import GrpoTrainer
from gptoss_tune.train.loss import LossFunction, weighted_token_loss
from gptoss_tune.train.observers.observer import StepObserver
from gptoss_tune.train.preference.collator import KtoCollator, PreferenceCollator
from gptoss_tune.train.preference.loss import PreferenceLoss
from gptoss_tune.train.preference.reference import ReferenceObserver, with_reference
from gptoss_tune.train.preference_trainer import KtoTrainer, PreferenceTrainer
from gptoss_tune.train.rollouts.playing import Playing
from gptoss_tune.train.rollouts.tasks import Tasks
from gptoss_tune.train.sft import WeightedSftTrainer, sft_config
from gptoss_tune.train.trainer import MethodTrainer
from gptoss_tune.train.trl_config import trainer_arguments

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel

    from gptoss_tune.recipe.schema import TrainSection


@dataclass(frozen=True)
class Prepared:
    """The rows as they are trained on, and what watches over them."""

    train_set: Dataset
    eval_set: Dataset | None
    observers: Sequence[StepObserver] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    """What the trainer takes besides."""


@dataclass(frozen=True)
class Method:
    """One method of training, with its settings.

    Attributes:
        trainer: Its class; takes ``loss`` besides what every ``MethodTrainer`` does.
        arguments: From ``train``, ``held_out`` and ``dtype`` to the trainer's arguments.
        collator: From the padding token and ``data.packing`` to what makes batches of rows.
        loss: Of a micro-batch, unless the caller of ``train`` brings one.
        prepare: What the rows need of the model before the first step; every rank calls it.
        rows: The data as they are trained on; every rank calls it.
        sources: From numbers of such rows to ``file:line``; ``None``: of rendered rows.
    """

    trainer: Callable[..., MethodTrainer]
    arguments: Callable[..., Any]
    collator: Callable[..., Callable[[Any], dict[str, Any]]]
    loss: LossFunction
    prepare: Callable[[RunContext, PeftModel, Dataset, Dataset | None], Prepared]
    rows: Callable[[RunContext, list[str], Counter[str]], tuple[Dataset, Dataset | None]]
    sources: Callable[[list[int]], list[str]] | None = None


def rendered_rows(
    context: RunContext, told: list[str], efforts: Counter[str]
) -> tuple[Dataset, Dataset | None]:
    """Render the data on rank 0 first, so that the others read its cache.

    Args:
        context: The run.
        told: Gets what is lost of the data or may be meant otherwise, which is printed too.
        efforts: Gets how many samples are trained on at each reasoning effort.

    Raises:
        DataError: A row or file cannot be trained on.
    """
    recipe = context.recipe
    vocabulary, seed = load_vocabulary(context.base.path), recipe.train.seed

    def tell(line: str) -> None:
        told.append(line)
        context.console.print(visible(line), soft_wrap=True, highlight=False, markup=False)

    load = partial(
        load_dataset,
        recipe.data,
        vocabulary=vocabulary,
        seed=seed,
        tell=tell,
        kind=kind_of(recipe.method),
    )
    with context.state.main_process_first():
        trained_on = load(split="train", efforts=efforts)
        return trained_on, load(split="eval") if context.held_out else None


def _as_rendered(
    context: RunContext, model: PeftModel, train_set: Dataset, eval_set: Dataset | None
) -> Prepared:
    return Prepared(train_set, eval_set)


def _supervised(section: MethodSection, lora: LoraSection) -> Method:
    loss, rows = weighted_token_loss, rendered_rows
    return Method(WeightedSftTrainer, sft_config, Collator, loss, _as_rendered, rows)


def _preference(section: Any, lora: LoraSection) -> Method:
    """Return the method of a section of pairs or labelled answers."""
    reference = reference_of(section, lora)
    labelled = isinstance(section, KtoSection)

    def collator(pad_token_id: int, *, packed: bool) -> PreferenceCollator:
        # A row holds the documents of its answers, whether it is packed or not.
        return (KtoCollator if labelled else PreferenceCollator)(pad_token_id)

    def prepare(
        context: RunContext, model: PeftModel, train_set: Dataset, eval_set: Dataset | None
    ) -> Prepared:
        if reference == "none":
            return Prepared(train_set, eval_set)
        splits = {"train": train_set} | ({} if eval_set is None else {"eval": eval_set})
        known, made = with_reference(context, model, reference, splits)
        watch = ReferenceObserver(context.run, made)
        return Prepared(known["train"], known.get("eval"), [watch])

    return Method(
        trainer=partial(
            KtoTrainer if labelled else PreferenceTrainer,
            section=section,
            reference=reference != "none",
        ),
        arguments=_plain_arguments,
        collator=collator,
        loss=PreferenceLoss(section),
        prepare=prepare,
        rows=rendered_rows,
    )


def _grpo(section: GrpoSection, lora: LoraSection) -> Method:
    """Return the method whose rows are prompts, and whose answers are played on the way."""
    tasks = Tasks()

    def collator(pad_token_id: int, *, packed: bool) -> GrpoCollator:
        # A row holds samples of several episodes, whether it is packed or not.
        later = {"old_logps": section.updates > 1, "reference_logps": section.kl_weight > 0}
        return GrpoCollator(
            pad_token_id, columns=tuple(name for name in GRPO_KEYS if later.get(name, True))
        )

    def prepare(
        context: RunContext, model: PeftModel, train_set: Dataset, eval_set: Dataset | None
    ) -> Prepared:
        playing = Playing(context, model, tasks)
        keywords = {"playing": playing, "context": context}
        return Prepared(train_set, eval_set, [playing.observer], keywords)

    return Method(
        trainer=partial(GrpoTrainer, section=section),
        arguments=_plain_arguments,
        collator=collator,
        loss=GrpoLoss(section),
        prepare=prepare,
        rows=tasks.read,
        sources=tasks.sources,
    )


def _plain_arguments(train: TrainSection, *, held_out: bool, dtype: str) -> TrainingArguments:
    return TrainingArguments(**trainer_arguments(train, held_out=held_out, dtype=dtype))


METHODS: dict[str, Callable[[Any, LoraSection], Method]] = {
    "sft": _supervised,
    **dict.fromkeys(("dpo", "ipo", "simpo", "orpo", "kto"), _preference),
    "grpo": _grpo,
}
"""Every method by its name in a recipe: from its section, and ``lora``, to what trains."""
