"""Columns of any dataset -> a row of a known format, through templates in the recipe.

``columns: {prompt: "{{ question }}", completion: "{{ answer }}"}`` writes the fields of a known row
from the columns of an unknown one. The templates are the part of Jinja that
``template_language.py`` describes: they see the row and nothing else, and an unknown column is an
error and not an empty text. Python functions
named in a recipe were the alternative; a recipe never chooses code to import.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from jinja2 import TemplateError, TemplateSyntaxError

from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.harmony.fields import shown
from gptoss_tune.harmony.sources.files import Located, parse_object
from gptoss_tune.harmony.template_language import TemplateLanguage

# What Python raises when an expression does not fit the row.
_FAILS_SO: Final = (
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
)
_JSON_FIELDS: Final = ("messages", "conversations", "tools", "weight")


class ColumnTemplates:
    """The templates of one source, compiled once."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        """Compile the templates.

        Raises:
            RecipeError: A template is not Jinja, or uses what templates of a recipe do not have.
        """
        self._language = TemplateLanguage()
        try:
            self._templates = {
                name: self._language.compiled(template) for name, template in columns.items()
            }
        except TemplateSyntaxError as error:
            raise RecipeError(f"columns: a template is not Jinja ({error}); fix it") from None
        except TemplateError as error:
            raise RecipeError(f"columns: a template cannot be used: {error}") from None

    def rows(self, located: Iterable[Located]) -> Iterator[Located]:
        """Yield the rows that the templates write; a row that fails becomes its error."""
        for at, raw in located:
            try:
                if isinstance(raw, DataError):
                    raise raw
                row = parse_object(raw, at) if isinstance(raw, bytes) else raw
                yield at, self.apply(row, at)
            except DataError as error:
                yield at, error

    def apply(self, row: dict[str, Any], at: str) -> dict[str, Any]:
        """Return the row that the templates write; empty texts are left out.

        Raises:
            DataError: A template names a column that the row does not have, or fails on it.
        """
        written: dict[str, Any] = {}
        self._language.start_row()
        for name, template in self._templates.items():
            try:
                text = template.render(row)
            except (TemplateError, *_FAILS_SO) as error:
                raise DataError(
                    f"{at}: the template of {name!r} fails on this row ({error}); its columns are "
                    f"{', '.join(map(shown, list(row)[:8]))}"
                ) from None
            if not text:
                continue
            written[name] = _parsed(name, text, at) if name in _JSON_FIELDS else text
        return written


def _parsed(name: str, text: str, at: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(
            f"{at}: the template of {name!r} writes {shown(text)}, which is not JSON; end it with "
            "the filter '| tojson'"
        ) from None
