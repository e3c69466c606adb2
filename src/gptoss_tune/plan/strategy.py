"""The check of a strategy against the base: what FSDP2 cannot spread is known before a launch.

The rules of a recipe look at its values alone; how many experts there are stands in the base's
configuration, which lies on this machine or is one of the released ones. A base that is neither is
judged when a run opens it.
"""

from __future__ import annotations

from gptoss_tune.errors import GptossTuneError
from gptoss_tune.plan.architecture import architecture_of
from gptoss_tune.recipe.mistakes import Mistake, Place, RecipeMistakes
from gptoss_tune.recipe.recipe import fsdp2_obstacle, uneven_experts
from gptoss_tune.recipe.schema import DistributedSection, ModelSection, TrainSection


def refuse_unspreadable(
    name: str, model: ModelSection, train: TrainSection, distributed: DistributedSection
) -> None:
    """Refuse a recipe whose FSDP2 run would end when it shares the model between processes.

    Args:
        name: The recipe's file, for the message.
        model: Names the base.
        train: What of it FSDP2 cannot spread.
        distributed: How many processes, and how they share the model.

    Raises:
        RecipeMistakes: It would.
    """
    if distributed.strategy != "fsdp2":
        return
    found = fsdp2_obstacle(model, train)
    if found is None:
        try:
            experts = architecture_of(model.name_or_path).experts
        except GptossTuneError:
            return  # not known here; the run says what is wrong with it
        found = uneven_experts(experts, distributed.num_processes)
    if found is not None:
        got, _, todo = found.partition("; ")
        expected = "what FSDP2 can spread"
        mistake = Mistake(
            Place(0, 0, 0, name), "distributed.strategy", f"fsdp2 ({got})", expected, todo
        )
        raise RecipeMistakes(name, [mistake])
