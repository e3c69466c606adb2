"""What the first phase of a run shows of its environment: that it plays, and gives what is weighed.

One episode says neither: a class may give a component for some rows only, and a service that it
asks may fail once. All ranks have the same episodes, so all come to the same verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe.contradictions.rewards import COMPONENTS, FLOAT
from gptoss_tune.train.rollouts.played import Played

_MOST_REASONS = 3


def refuse_failed(episodes: Sequence[Played], environment: str) -> None:
    """Refuse an environment that raised in every episode.

    Args:
        episodes: Of a whole phase.
        environment: The setting and its value, as in ``--environment shop:Shop``.

    Raises:
        RecipeError: It did.
    """
    if not episodes or any(one.ended != "error" for one in episodes):
        return
    raise RecipeError(
        f"{environment}: got an error in all {len(episodes):,} episodes of the first phase, "
        f"expected some that are played: {_reasons(episodes)}; correct it, and start again"
    )


def refuse_not_given(episodes: Sequence[Played], weighed: Sequence[str], environment: str) -> None:
    """Refuse weights of components that no episode gave.

    Args:
        episodes: Of a whole phase, played by a class of the user's own that does not say in
            ``components`` what it gives.
        weighed: Names of ``method.rewards``.
        environment: The setting and its value.

    Raises:
        RecipeError: Lists them, with what was given and why rewards failed.
    """
    given = {name for one in episodes for name in _given(one)}
    missing = [name for name in weighed if name not in COMPONENTS and name not in given]
    if not missing:
        return
    got = ", ".join(sorted(given)) or "nothing"
    raise RecipeError(
        "\n".join(
            [
                *(
                    f"method.rewards.{name}: got {name!r}, which none of the {len(episodes):,} "
                    f"episodes of the first phase was given; expected what {environment} gives "
                    f"({got}) or one of {', '.join(COMPONENTS)}; rename it, have reward() give it, "
                    "or name it in the class's attribute components where few episodes have it"
                    for name in missing
                ),
                *([f"rewards failed: {said}"] if (said := _reasons(episodes)) else []),
            ]
        )
    )


def _given(one: Played) -> set[str]:
    """Return the components that came; those that count 0 for a reward that failed did not."""
    failed, found = one.rewards.failed, one.rewards.components
    return {
        name
        for name, value in found.items()
        if name not in failed and (FLOAT not in failed or value)
    }


def _reasons(episodes: Sequence[Played]) -> str:
    """Return the reasons that come most often, each with the first episode that has it."""
    said: Counter[str] = Counter()
    first: dict[str, str] = {}
    for one in episodes:
        for reason in one.rewards.failed.values():
            said[reason] += 1
            first.setdefault(reason, one.source)
    most = said.most_common(_MOST_REASONS)
    return "; ".join(f"{reason} (x{count}, first at {first[reason]})" for reason, count in most)
