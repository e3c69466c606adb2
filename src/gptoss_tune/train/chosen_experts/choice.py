"""Which experts a run trains: counted, or those of the adapter or checkpoint that it goes on from.

A choice is made once. A continuation takes it from its checkpoint, and never counts again: other
libraries or another GPU might route a token to another expert, and the factors would belong to
nobody. A run that starts from an adapter trains the experts that the adapter has.

L layers, E experts, n of them chosen in each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.model.initial_adapter import initial_adapter_folder
from gptoss_tune.recipe.recipe import chosen_count
from gptoss_tune.run.record import update_record
from gptoss_tune.train.chosen_experts.counting import Counted, count, first_rows
from gptoss_tune.train.chosen_experts.load import most_loaded
from gptoss_tune.train.observers.observer import StepObserver
from gptoss_tune.weights.adapter_config import (
    CHOSEN_EXPERTS,
    ExpertChoice,
    choice_to_start_from,
    expert_choice,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from gptoss_tune.train.context import RunContext

_KEPT_IN = "chosen_experts.json"


@dataclass(frozen=True)
class Chosen:
    """The experts of a run that get an adapter, and why those.

    Attributes:
        choice: Their numbers by layer.
        facts: For the record: ``layers`` is the choice, ``chosen_by`` says what made it (``data``
            or ``init_from``), ``share_of_load`` by layer what part of the loss-weighted tokens they
            see, and ``load`` ``[L][E]`` the shares of all, each layer's sum 1.
    """

    choice: ExpertChoice
    facts: dict[str, Any]


def chosen_by(context: RunContext, train_set: Dataset) -> Chosen | None:
    """Return the experts that the run trains; ``None``: all. Every rank has to call it.

    Args:
        context: Of the run.
        train_set: Its rows, as they are trained on.

    Raises:
        RecipeError: The adapter to start from has factors of other experts than ``lora.experts``
            asks for, or there are fewer experts than it asks for.
        CheckpointError: The checkpoint to continue from holds no choice that can be read.
        DataError, MachineError: See ``count``.
    """
    lora, config = context.recipe.lora, context.base.config
    layers, experts = config["num_hidden_layers"], config["num_local_experts"]
    asked = chosen_count(lora, experts)
    if context.start.checkpoint is not None:
        return None if asked is None else from_checkpoint(context.start.checkpoint, config)
    if lora.init_from is not None:
        return _from_adapter(context, Path(lora.init_from))
    if asked is None:
        return None
    assert lora.experts != "all"  # or none would be asked for
    rows = first_rows(train_set, lora.experts.tokens, context.recipe.train.seed)
    counted = count(context, rows, f"to choose {asked} of {experts} experts in each layer")
    adapted = lora.layers or range(layers)
    if max(adapted) >= layers:
        raise RecipeError(f"lora.layers: got {max(adapted)}, but the base has {layers} layers")
    choice = {layer: most_loaded(counted.counts[layer], asked) for layer in sorted(adapted)}
    facts = _facts(choice, counted, experts)
    shares = list(facts["share_of_load"].values())
    known = " in an earlier pass" if counted.cached else ""
    context.console.print(
        f"experts: {asked} of {experts} in each layer get an adapter; they see "
        f"{sum(shares) / len(shares):.1%} of the trained tokens' choices, {min(shares):.1%} in the "
        f"lowest layer ({counted.tokens:,} tokens counted{known})",
        soft_wrap=True,
    )
    return Chosen(choice, facts)


def _facts(choice: ExpertChoice, counted: Counted, experts: int) -> dict[str, Any]:
    totals = [sum(row) for row in counted.counts]
    return {
        "chosen_by": "data",
        "experts": experts,
        "layers": {str(layer): list(chosen) for layer, chosen in choice.items()},
        "share_of_load": {
            str(layer): round(sum(counted.counts[layer][e] for e in chosen) / totals[layer], 6)
            for layer, chosen in choice.items()
        },
        "load": [
            [round(number / total, 6) for number in row]
            for row, total in zip(counted.counts, totals, strict=True)
        ],
        "rows": counted.rows,
        "tokens": counted.tokens,
        "seconds": round(counted.seconds, 2),
        "cached": counted.cached,
    }


def from_checkpoint(checkpoint: Path, config: dict[str, Any]) -> Chosen:
    """Return the experts that the run of a checkpoint trains.

    Args:
        checkpoint: Its folder.
        config: Of the base.

    Raises:
        CheckpointError: It does not say, or says what is none.
    """
    file = checkpoint / _KEPT_IN
    try:
        facts = read_object(file)
    except (OSError, CheckpointError) as error:
        raise CheckpointError(
            f"{file}: no readable choice of experts ({error}); resume from another checkpoint"
        ) from error
    sizes = config["num_hidden_layers"], config["num_local_experts"]
    choice = expert_choice({CHOSEN_EXPERTS: facts.get("layers", {})}, *sizes, str(file))
    assert choice is not None  # an empty one is refused
    return Chosen(choice, facts)


def _from_adapter(context: RunContext, source: Path) -> Chosen | None:
    """Return the experts of the adapter that the run starts from, which the recipe has to fit."""
    config, folder = context.base.config, initial_adapter_folder(source)
    layers, experts = config["num_hidden_layers"], config["num_local_experts"]
    choice = choice_to_start_from(folder, context.recipe.lora, layers, experts)
    if choice is None:
        return None
    context.console.print(
        f"experts: {len(next(iter(choice.values())))} of {experts} in each layer get an adapter, "
        f"those of {folder}",
        soft_wrap=True,
        markup=False,
    )
    listed = {str(layer): list(chosen) for layer, chosen in choice.items()}
    return Chosen(choice, {"chosen_by": "init_from", "experts": experts, "layers": listed})


class ChoiceObserver(StepObserver):
    """Keeps the choice of a run in its record and its checkpoints."""

    file = _KEPT_IN
    kept = "choice of experts"

    def __init__(self, run: Path, chosen: Chosen) -> None:
        """Watch over ``chosen``, the experts of the run in the folder ``run``."""
        self._run, self._chosen = run, chosen

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the choice into the run's record."""
        if state.is_world_process_zero:
            update_record(self._run, chosen_experts=self._chosen.facts)

    def state_dict(self) -> dict[str, Any]:
        """Return the choice and what it was made from."""
        return self._chosen.facts

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Compare with what the checkpoint says, which the run was built from.

        Raises:
            CheckpointError: They differ.
        """
        if state.get("layers") != self._chosen.facts["layers"]:
            raise CheckpointError("the run was built with other experts than are kept here")
