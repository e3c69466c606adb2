"""Held-out prompts, played greedily once each: the rewards that an evaluation tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptoss_tune.distributed import gather_over_ranks, rank, world_size
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.train.rollouts.groups import Group
from gptoss_tune.train.rollouts.phase import PlaysEpisodes
from gptoss_tune.train.rollouts.played import Played


def play_held_out(
    play: PlaysEpisodes,
    prompts: int,
    chunk: int,
    seed: int,
    should_stop: Callable[[], bool],
) -> list[Group]:
    """Return a group of one episode for each held-out prompt; every rank calls it.

    Args:
        play: Of this rank, on the held-out tasks.
        prompts: How many there are.
        chunk: Episodes played together, on one rank.
        seed: Of what an environment draws; tokens are the likeliest.
        should_stop: Whether this rank was asked to stop.

    Raises:
        Stopped: On all ranks, where one was asked to stop.
    """
    chunks = [range(start, min(start + chunk, prompts)) for start in range(0, prompts, chunk)]
    found: list[Played] = []
    for start in range(0, len(chunks), world_size()):
        episodes: list[Played] | None = []
        if start + rank() < len(chunks):
            asked = [(task, 0, seed + task) for task in chunks[start + rank()]]
            try:
                episodes = None if should_stop() else play(asked, 0.0, should_stop)
            except Stopped:
                episodes = None
        everyone = gather_over_ranks(episodes)
        if any(one is None for one in everyone):
            raise Stopped
        found += [episode for one in everyone for episode in one]
    return [Group(place, (episode,)) for place, episode in enumerate(found)]


def held_out_figures(groups: Sequence[Group]) -> dict[str, float]:
    """Return what an evaluation tells; nothing without prompts.

    Returns:
        Means over the episodes: ``reward``, its components, ``episode_tokens``, ``cut_off_share``;
        and ``failed_rewards``: components that counted 0 since they raised or hung, and episodes
        that did since their environment failed.
    """
    episodes = [one for group in groups for one in group.episodes]
    count = len(episodes)
    if not count:
        return {}
    names = sorted({name for one in episodes for name in one.rewards.components})
    return {
        "reward": sum(one.rewards.total for one in episodes) / count,
        **{
            f"reward_{name}": sum(one.rewards.components.get(name, 0.0) for one in episodes) / count
            for name in names
        },
        "episode_tokens": sum(one.tokens for one in episodes) / count,
        "cut_off_share": sum(one.cut_off for one in episodes) / count,
        "failed_rewards": float(sum(len(one.rewards.failed) for one in episodes)),
    }
