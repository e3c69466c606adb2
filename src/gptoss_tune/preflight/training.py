"""Everything that is looked at before a run: the one call of ``train`` and of each of its ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gptoss_tune.error_hints import missing_extra
from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.harmony.dataset.kinds import kind_of
from gptoss_tune.plan.architecture import RELEASED, Architecture, read_architecture
from gptoss_tune.preflight import files, machine
from gptoss_tune.preflight.changes import look_at_changes
from gptoss_tune.preflight.obstacles import Obstacles
from gptoss_tune.preflight.unusual import unusual_settings
from gptoss_tune.recipe import Recipe
from gptoss_tune.recipe.contradictions.rewards import needs_graders
from gptoss_tune.recipe.mistakes import KeyPath, Place
from gptoss_tune.recipe.recipe import fsdp2_obstacle, uneven_experts
from gptoss_tune.recipe.schema import DistributedSection, MethodSection, ModelSection, TrainSection


def look_before_training(
    name: str,
    recipe: Recipe,
    places: Mapping[KeyPath, Place],
    *,
    allow_change: Sequence[str] = (),
    launched: bool = False,
    on_cpu: bool = False,
    environment: str | None = None,
) -> list[str]:
    """Refuse a run that would end with an error later; return what is unusual about it.

    Args:
        name: The recipe's file.
        recipe: What is trained.
        places: Where its settings are written, from ``recipe.load.places``.
        allow_change: As given to ``train``.
        launched: By a launcher, which counts processes and GPUs itself.
        on_cpu: Days on a CPU are meant.
        environment: ``module:Class`` that is to play episodes; ``None``: none was named.

    Raises:
        GptossTuneError: With every obstacle; see ``Obstacles.refuse``.
    """
    if (extra := missing_extra("torch")) is not None:
        raise MachineError(extra)  # nothing trains here, whatever the recipe says
    obstacles = Obstacles(name, places)
    base = files.look_at_base(recipe.model, obstacles)
    architecture = _architecture(base, recipe.model.name_or_path)
    fitting = files.look_at_experts(recipe.lora, architecture, obstacles)
    files.look_at_start(recipe.lora, fitting, obstacles)
    with obstacles.looking("method.name"):
        _look_at_environment(environment, recipe.method)
    own = environment is not None
    graded = needs_graders(recipe.method, own=own)
    files.look_at_data(recipe.data, kind_of(recipe.method), obstacles, graded=graded, own=own)
    files.look_at_questions(recipe.evaluation, obstacles)
    files.look_at_folder(recipe.train, recipe.lora, fitting, obstacles)
    look_at_changes(allow_change, recipe.train, recipe.model_dump(mode="json"), obstacles)
    machine.look_at_libraries(recipe.model, recipe.train, recipe.tracking, obstacles)
    gpus = None if launched else machine.gpus_of(recipe.distributed, obstacles)
    _look_at_strategy(recipe.model, recipe.train, recipe.distributed, architecture, obstacles)
    wait = gpus == 0 and not on_cpu
    obstacles.refuse()  # a plan, which looks at the rest, is made of what is sound
    from gptoss_tune.plan.gpus import GPUS
    from gptoss_tune.plan.plan import plan

    card = max(GPUS, key=lambda gpu: gpu.memory_gib)  # which needs no advice
    if architecture is not None:
        with obstacles.looking("model.name_or_path"):
            work = plan(recipe, card).work
            if wait:
                machine.look_at_time(work, base, obstacles)
    if not obstacles and base is None and not launched:  # the Hub last: it may take long to answer
        with obstacles.looking("model.name_or_path"):
            base = files.config_on_hub(recipe.model)
            if architecture is None:
                here = {"model.name_or_path": str(base), "model.revision": None}
                work = plan(recipe.with_settings(here), card).work
                if wait:
                    machine.look_at_time(work, None, obstacles)
    obstacles.refuse()
    return unusual_settings(recipe.model, recipe.lora, recipe.method, recipe.data, recipe.train)


def _look_at_environment(environment: str | None, method: MethodSection) -> None:
    """Look whether the class can be imported, and whether anything would use it.

    Raises:
        RecipeError: It cannot, or nothing would.
    """
    if environment is None:
        return
    if method.name != "grpo":
        raise RecipeError(
            f"--environment: got {environment!r} with method.name {method.name}, which plays no "
            "episodes; remove it, or set method.name to grpo"
        )
    from gptoss_tune.environments.load import load_environment

    load_environment(environment)


def _architecture(base: Path | None, name_or_path: str) -> Architecture | None:
    """Return the sizes of the base, where they are known without asking anybody."""
    if base is not None:
        return read_architecture(base / "config.json")
    return RELEASED.get(name_or_path)


def _look_at_strategy(
    model: ModelSection,
    train: TrainSection,
    distributed: DistributedSection,
    architecture: Architecture | None,
    obstacles: Obstacles,
) -> None:
    """Look whether FSDP2 can spread the model, where the recipe asks for it."""
    if distributed.strategy != "fsdp2":
        return
    with obstacles.looking("distributed.strategy"):
        reason = fsdp2_obstacle(model, train)
        if reason is None and architecture is not None:
            reason = uneven_experts(architecture.experts, distributed.num_processes)
        if reason is not None:
            raise RecipeError(reason)
