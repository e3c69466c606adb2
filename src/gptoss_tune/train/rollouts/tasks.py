"""The prompts of a run: read once, and known to the fingerprint by a digest of each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from datasets import Dataset

from gptoss_tune.display import visible
from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe.contradictions.rewards import needs_graders
from gptoss_tune.rollout.tasks import announced, read_tasks

if TYPE_CHECKING:
    from gptoss_tune.environments.environment import Task
    from gptoss_tune.train.context import RunContext


@dataclass
class Tasks:
    """The tasks of a run.

    Attributes:
        train: To learn from.
        eval: Held out; ``None``: none are.
    """

    train: list[Task] = field(default_factory=list)
    eval: list[Task] | None = None

    def read(
        self, context: RunContext, told: list[str], efforts: Counter[str]
    ) -> tuple[Dataset, Dataset | None]:
        """Read them, and return a row for each.

        Args:
            context: Of the run.
            told: Gets what is lost of the data or may be meant otherwise, which is printed too.
            efforts: Gets how many prompts there are at each reasoning effort.

        Raises:
            DataError: A row or file cannot be read, or there is no row to train on.
            RecipeError: The processes share the model.
        """
        recipe = context.recipe
        if context.parallelism == "fsdp2":
            raise RecipeError(
                "method.name: grpo cannot be spread by FSDP2: each process plays episodes of its "
                "own, and such a model answers only where all ask at the same time; launch with "
                "recipes/accelerate/ddp.yaml"
            )

        def tell(line: str) -> None:
            told.append(line)
            context.console.print(visible(line), soft_wrap=True, highlight=False, markup=False)

        own = context.environment is not None
        read = partial(
            read_tasks,
            recipe.data,
            vocabulary=load_vocabulary(context.base.path),
            seed=recipe.train.seed,
            graded=needs_graders(recipe.method, own=own),
            own_environment=own,
            announced=announced(recipe.method, own=own),
        )
        with context.state.main_process_first():  # the others find what it downloads
            self.train = read(split="train", tell=tell)
            if context.held_out:
                self.eval = read(split="eval", tell=tell)
        if not self.train:
            raise DataError("data.train: no row gives a prompt; expected one at least")
        efforts.update(task.conversation.effort or "" for task in self.train)
        return rows_of(self.train), None if self.eval is None else rows_of(self.eval)

    def sources(self, rows: Sequence[int]) -> list[str]:
        """Return ``file:line`` of tasks by their numbers."""
        return [self.train[row].source for row in rows]


def rows_of(tasks: Sequence[Task]) -> Dataset:
    """Return a row for each task: ``task``, the bytes of a digest of all that it holds."""
    return Dataset.from_dict({"task": [list(_digest(task)) for task in tasks]})


def _digest(task: Task) -> bytes:
    text = json.dumps(task.row, sort_keys=True, default=repr) + repr(task.conversation)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
