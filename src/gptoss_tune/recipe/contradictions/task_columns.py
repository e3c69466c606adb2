"""Rules of a source's ``columns``: keys that grade an episode are for methods with episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gptoss_tune.recipe.contradictions.contradiction import Contradiction

if TYPE_CHECKING:
    from gptoss_tune.recipe.data_schema import DataSection
    from gptoss_tune.recipe.schema import MethodSection

_WITH_EPISODES = ("grpo",)


def task_column_rules(
    method: MethodSection, data: DataSection, task_keys: Sequence[str]
) -> Iterator[Contradiction]:
    """Yield each template of ``data`` for one of ``task_keys`` that ``method`` never reads."""
    if method.name in _WITH_EPISODES:
        return
    for split, sources in (("train", data.train), ("eval", data.eval or [])):
        for index, source in enumerate(sources):
            for key in source.columns or {}:
                if key in task_keys:
                    yield Contradiction(
                        (f"data.{split}[{index}].columns.{key}", "method.name"),
                        f"a template with method.name {method.name}",
                        "a field of a conversation: nothing is graded in training by this method",
                        "remove it, or set method.name to grpo",
                    )
