"""What plays the episodes of a run: environment, rewards and sampler, as its recipe says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_tune.distributed import gather_over_ranks, rank
from gptoss_tune.environments.load import built_in
from gptoss_tune.environments.rewards.reward import RewardFunction
from gptoss_tune.errors import RecipeError
from gptoss_tune.harmony.dataset.load import sample_settings
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe.schema import GrpoSection, reference_of
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.rollout.play import Limits, Player
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import read_record
from gptoss_tune.train.grpo.reference import StartAdapter
from gptoss_tune.train.rollouts.first_phase import refuse_failed, refuse_not_given
from gptoss_tune.train.rollouts.groups import Group, PromptOrder
from gptoss_tune.train.rollouts.held_out import held_out_figures, play_held_out
from gptoss_tune.train.rollouts.ledger import Ledger
from gptoss_tune.train.rollouts.observer import RolloutObserver
from gptoss_tune.train.rollouts.phase import Asked, Phase, PlaysEpisodes, Rollouts
from gptoss_tune.train.rollouts.played import Played, played
from gptoss_tune.train.rollouts.tasks import Tasks

if TYPE_CHECKING:
    from peft import PeftModel

    from gptoss_tune.environments.environment import Environment, Task
    from gptoss_tune.rollout.sampler import Sampler
    from gptoss_tune.train.context import RunContext


class Playing:
    """Plays the episodes of one run on this rank.

    Attributes:
        observer: Counts them.
        save: Writes the adapter into a folder, every rank calling it; the trainer sets it.
        reference: Whether log-probabilities of a reference are needed.
        start: The adapter that the run began from, where that is the reference.
    """

    def __init__(self, context: RunContext, model: PeftModel, tasks: Tasks) -> None:
        """Look at environment and rewards; the sampler is made when it is first asked for weights.

        Args:
            context: Of the run, whose method is grpo.
            model: As it was built: no checkpoint is loaded yet.
            tasks: Of the data.

        Raises:
            DataError: A row's answer cannot be graded, or there is no row.
            MachineError: This machine cannot judge as a row asks for.
            RecipeError: The environment, or a weight of a reward, is none.
        """
        section, recipe = _section(context), context.recipe
        self._context, self._section, self._model, self._tasks = context, section, model, tasks
        self._make = environment_of(context)
        own = context.environment is not None
        self._reward = RewardFunction(
            section.rewards,
            own=own,
            seconds=section.reward_seconds,
            length_target=section.length_target,
        )
        first = self._make() if own else None
        self._reward.check([*tasks.train, *(tasks.eval or ())], first)
        self._says_what_it_gives = not own or getattr(first, "components", None) is not None
        self._sampler: Sampler | None = None
        self._updated: int | None = None
        self.save: Callable[[Path], None] | None = None
        self.reference = section.kl_weight > 0
        of = reference_of(section, recipe.lora)
        self.start = StartAdapter(model) if of == "init_adapter" else None
        facts = {
            "environment": context.environment or section.environment,
            "sampler": section.sampler,
        }
        self.observer = RolloutObserver(section, context.run, facts, self.close)
        self.rollouts = Rollouts(
            section,
            PromptOrder(len(tasks.train), recipe.train.seed),
            self._plays(tasks.train),
            Ledger(RunFolder(context.run).ledger),
            self._asked_to_stop,
        )

    def _player_of(self, sampler: Sampler) -> Player:
        """Return what plays with ``sampler``."""
        context, section = self._context, self._section
        data = context.recipe.data
        settings = RenderSettings(date=data.date, reasoning_effort=data.reasoning_effort)
        renderer = Renderer(load_vocabulary(context.base.path), settings)
        limits = Limits(
            max_new_tokens=section.max_new_tokens,
            max_turns=section.max_turns,
            max_length=data.max_length,
            tool_seconds=section.tool_seconds,
            episode_seconds=section.episode_seconds,
        )
        return Player(sampler, renderer, self._make, self._reward.judge_many, limits)

    def update(self, version: int) -> None:
        """Let the sampler take over the weights after ``version`` steps; every rank calls it.

        Raises:
            MachineError: A server does not answer.
        """
        if self._sampler is None:
            assert self.save is not None  # the trainer set it
            self._sampler = sampler_of(self._context, self._model, self.save)
            self._player = self._player_of(self._sampler)
        if self._updated != version:  # an evaluation and a phase may follow the same step
            self._sampler.update(version)
            self._updated = version

    def held_out(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """Play the held-out prompts greedily with the weights after ``step`` steps.

        Raises:
            Stopped: On all ranks, where one was asked to stop.
        """
        self.update(step)
        tasks, batch = self._tasks.eval or [], self._section.rollout_batch
        seed = self._context.recipe.train.seed
        play = self._plays(tasks)
        groups = play_held_out(play, len(tasks), batch, seed, self._asked_to_stop)
        figures = held_out_figures(groups)
        self.observer.note_held_out(step, figures, write=rank() == 0)
        return groups, figures

    def look_at_first(self, phase: Phase) -> None:
        """Refuse to go on after a first phase that nothing can be learnt from; on all ranks.

        Raises:
            RecipeError: The environment raised in all of its episodes, or gave in none of them
                what has a weight.
        """
        named = self._context.environment
        spec = (
            f"method.environment {self._section.environment}"
            if named is None
            else f"--environment {named}"
        )
        episodes = [one for group in phase.played for one in group.episodes]
        try:
            refuse_failed(episodes, spec)
            if not self._says_what_it_gives:
                refuse_not_given(episodes, list(self._section.rewards), spec)
        except RecipeError:
            # Corrected where no digest of the environment sees it, it is to be played again.
            self.rollouts.forget()
            raise

    def dataset_of(self, task: int) -> int:
        """Return the number of the entry of ``data.train`` that a task is from."""
        return self._tasks.train[task].dataset

    def close(self) -> None:
        """Give back what the sampler holds."""
        if self._sampler is not None:
            self._sampler.close()

    def _plays(self, tasks: Sequence[Task]) -> PlaysEpisodes:
        def play(
            asked: Sequence[Asked], temperature: float, should_stop: Callable[[], bool]
        ) -> list[Played]:
            given = [(tasks[number], index, seed) for number, index, seed in asked]
            found = self._player.play(given, temperature=temperature, should_stop=should_stop)
            return [played(episode) for episode in found]

        return play

    def _asked_to_stop(self) -> bool:
        """Say whether to stop, as it is asked before every token: the run is alive."""
        self._context.watch.note_progress()
        return self._context.stop.requested


def _section(context: RunContext) -> GrpoSection:
    section = context.recipe.method
    assert isinstance(section, GrpoSection)  # the methods' table
    return section


def environment_of(context: RunContext) -> Callable[[], Environment]:
    """Return what makes an environment: the class of the command line, or a built-in one.

    Raises:
        MachineError: The built-in one runs code of the model, which nothing here holds back.
    """
    if context.environment_class is not None:
        return context.environment_class
    section = _section(context)
    reading = sample_settings(context.recipe.data).reading
    return built_in(section.environment, reading=reading, tool_seconds=section.tool_seconds)


def sampler_of(context: RunContext, model: Any, save: Callable[[Path], None]) -> Sampler:
    """Return the sampler that the recipe names.

    Args:
        context: Of the run.
        model: That is trained.
        save: Writes its adapter into a folder; every rank calls it.

    Raises:
        MachineError: A server does not answer.
    """
    section = _section(context)
    if section.sampler == "own":
        return OwnSampler(model, batch=section.rollout_batch, replay=section.replay_routing)
    if section.sampler == "batched":
        from gptoss_tune.rollout.batched.sampler import BatchedSampler

        return BatchedSampler(model, batch=section.rollout_batch, replay=section.replay_routing)
    from gptoss_tune.rollout.server.open import open_server_sampler

    return open_server_sampler(
        section,
        context.base,
        gather_over_ranks(read_record(context.run) if rank() == 0 else None)[0],
        save=save,
        merge_aware=context.recipe.lora.merge_aware,
        device=str(context.device),
        progress=lambda done, total: context.watch.note_progress(),
    )
