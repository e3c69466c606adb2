"""Columns of any dataset -> a row of a known format, through templates in the recipe.

``columns: {prompt: "{{ question }}", completion: "{{ answer }}"}`` writes the fields of a known row
from the columns of an unknown one. A template is Jinja in its own sandbox, sees the row and nothing
else, and an unknown column is an error and not an empty text. Python functions named in a recipe
were the alternative; a recipe never chooses code to import.

The sandbox keeps a template from Python's insides (CVE-2026-5760 is what happens without it), and
lets it take for ever: loops in loops over a long text, ``'a' * 10**9``, a padding of a gigabyte. A
recipe may come from anyone, so what could grow is left out: loops, methods, functions, macros,
assignments, and the filters that make much of little. Expressions, conditions and short filters are
a column mapping and end by themselves, after ``_MOST_NODES`` steps over the row at most; what these
write is counted. Loops whose rounds and seconds are counted were the alternative: twice the code,
for rows that are better rewritten once, in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.harmony.fields import shown
from gptoss_tune.harmony.sources.rows import Located, parse_object

MOST_CHARACTERS: Final = 64 << 20
"""Characters that the templates of one row may produce; 131,072 tokens have at most 16 Mi."""
_MOST_NODES: Final = 500
_LARGEST_NUMBER: Final = 10**18

_NODES: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.Const, nodes.Name),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.CondExpr),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Keyword),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg, nodes.Pos),
    *(nodes.List, nodes.Dict, nodes.Pair, nodes.Tuple),
)
_FILTERS: Final = (
    *("abs", "capitalize", "count", "d", "default", "first", "float", "int", "last", "length"),
    *("lower", "round", "title", "trim", "upper"),
)
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
        self._language = _Language()
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
                text = "".join(template.generate(row))
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


class _Language(ImmutableSandboxedEnvironment):
    """Compiles templates, and counts what they write."""

    intercepted_binops = frozenset({"+", "*", "%"})

    def __init__(self) -> None:
        """Know no globals, and of the filters those on the list."""
        super().__init__(undefined=StrictUndefined, autoescape=False, finalize=self._written)
        self.globals.clear()
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.filters |= {"join": self._join, "tojson": self._to_json}
        self.start_row()

    def start_row(self) -> None:
        """Begin to count anew."""
        self._left = MOST_CHARACTERS

    def compiled(self, source: str) -> Template:
        """Return a template.

        Raises:
            TemplateError: It is no Jinja, or uses what templates do not have.
        """
        try:
            tree = self.parse(source)
            used = [tree, *tree.find_all(nodes.Node)]
            if len(used) > _MOST_NODES:
                raise SecurityError(f"it has more than {_MOST_NODES} parts")
            for node in used:
                self._check(node)
            code = self.compile(tree)
        except RecursionError:
            raise SecurityError("it is nested too deeply") from None
        return Template.from_code(self, code, {}, None)

    def _check(self, node: nodes.Node) -> None:
        where = f"line {node.lineno}"
        if isinstance(node, nodes.Call):
            raise TemplateError(f"{where}: functions cannot be called, nor methods; use a filter")
        if type(node) not in _NODES:
            raise TemplateError(f"{where}: {type(node).__name__} is not part of templates")
        if isinstance(node, nodes.Filter) and node.name not in self.filters:
            known = ", ".join(sorted(self.filters))
            raise TemplateError(f"{where}: no filter '{node.name}'; there are {known}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the sum, product or remainder of numbers, which are all that has one."""
        if not isinstance(left, int | float) or not isinstance(right, int | float):
            raise SecurityError(f"'{operator}' takes two numbers")
        if max(abs(left), abs(right)) > _LARGEST_NUMBER:
            raise SecurityError("a number is too large")
        return super().call_binop(context, operator, left, right)

    def _written(self, value: Any) -> Any:
        """Count what is written; a list is as long as its JSON, which is counted piece by piece."""
        if isinstance(value, list | tuple | dict):
            self._to_json(value)
        else:
            self._spend(len(value) if isinstance(value, str) else 1)
        return value

    def _spend(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise SecurityError(f"it writes more than {MOST_CHARACTERS:,} characters")

    def _join(self, value: list[Any], separator: str = "") -> str:
        """Return the items of a list joined."""
        if not isinstance(value, list | tuple):
            raise TypeError("'join' takes a list")
        for item in value:
            self._written(item)
            self._spend(len(separator))
        return separator.join(map(str, value))

    def _to_json(self, value: Any) -> str:
        """Return a value as JSON, with what HTML knows escaped, as Jinja's own filter does."""
        parts = []
        for part in json.JSONEncoder(sort_keys=True).iterencode(value):
            self._spend(len(part))
            parts.append(part)
        text = "".join(parts)
        for character in "<>&'":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text
