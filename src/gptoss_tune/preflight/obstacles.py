"""Obstacles to a job, collected and told at once, each with the place of its setting."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gptoss_tune.errors import GptossTuneError, MachineError, RecipeError
from gptoss_tune.recipe.mistakes import KeyPath, Place, dotted
from gptoss_tune.recipe.recipe import SECTIONS

_USER = RecipeError.exit_code
_NAMED = re.compile(r"([a-z]+(?:\.[a-z_]+)+): (.*)", re.DOTALL)


class Obstacles:
    """What stands in the way of one recipe's run.

    ::

        obstacles = Obstacles("a.yaml", places)
        with obstacles.looking("data.train"):
            open_source(source)  # what it raises is kept
        obstacles.refuse()  # and raised here, together with the rest
    """

    def __init__(self, name: str, places: Mapping[KeyPath, Place]) -> None:
        """Collect for the recipe that the user called ``name``.

        Args:
            name: Its file.
            places: Where each setting is written, from ``recipe.load.places``.
        """
        self._name = name
        self._places = {dotted(path): place for path, place in places.items()}
        self._found: list[tuple[str, GptossTuneError]] = []

    def __bool__(self) -> bool:
        """Return whether anything was found."""
        return bool(self._found)

    @contextmanager
    def looking(self, key: str) -> Iterator[None]:
        """Keep the error that the body raises, if it is one of ours, as one about ``key``."""
        try:
            yield
        except GptossTuneError as error:
            self._found.append((key, error))

    def refuse(self) -> None:
        """Raise what was found: one error as it is, with its place; several as a list.

        Raises:
            GptossTuneError: The only one, of its own kind; of several a RecipeError, or a
                MachineError where nothing of the user's is wrong.
        """
        if not self._found:
            return
        lines = list(dict.fromkeys(self._line(key, error) for key, error in self._found))
        if len(lines) == 1:
            raise type(self._found[0][1])(lines[0])
        theirs = any(error.exit_code == _USER for _, error in self._found)
        kind = RecipeError if theirs else MachineError
        told = "\n".join(f"  {line}" for line in lines)
        raise kind(f"{len(lines)} obstacles to {self._name}\n{told}")

    def _line(self, key: str, error: GptossTuneError) -> str:
        named = _NAMED.match(str(error))  # what a plan finds knows its setting itself
        known = named is not None and is_setting(named[1])
        key, text = (named[1], named[2]) if named and known else (key, str(error))
        place = self._places.get(key)
        return f"{place}: {key}: {text}" if place is not None else f"{key}: {text}"


def is_setting(name: str) -> bool:
    """Return whether a recipe has a setting of this dotted name."""
    *section, last = name.split(".")
    found = SECTIONS.get(tuple(section))
    return found is not None and last in found.model_fields
