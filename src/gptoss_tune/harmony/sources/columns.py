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

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import do_round, do_trim
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.harmony.fields import shown
from gptoss_tune.harmony.sources.rows import Located, Raw, parse_object

MOST_CHARACTERS: Final = 64 << 20
"""Characters that the templates of one row may produce; 131,072 tokens have at most 16 Mi."""
_MOST_NODES: Final = 500
_LARGEST_NUMBER: Final = 10**18
_LOOKED_AT: Final = 256
"""Rows from which the columns of a source are known before its first is written."""
_MOST_DIGITS: Final = 20
_MOST_INDENT: Final = 16
_MOST_TRIMMED: Final = 100
"""Bounds of a filter's argument: digits of round, spaces of tojson, characters of trim."""

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
_ANSWERS: Final = (
    *("messages", "conversations", "prompt", "completion", "text"),
    *("chosen", "rejected", "label"),
)
"""Fields without which there is no row."""
_JSON_FIELDS: Final = ("messages", "conversations", "tools", "weight", "label")
_TEXT_OR_MESSAGES: Final = ("chosen", "rejected")
"""Fields whose JSON may be a text's or a list's; the reader knows messages."""


class ColumnTemplates:
    """The templates of one source, compiled once."""

    def __init__(self, columns: Mapping[str, str], structured: Collection[str] = ()) -> None:
        """Compile the templates.

        Args:
            columns: Template of each field.
            structured: Fields besides those of data that are the value of the JSON which a template
                that ends with ``tojson`` writes, and its text else.

        Raises:
            RecipeError: A template is not Jinja, or uses what templates of a recipe do not have.
        """
        self._language = _Language()
        try:
            self._templates = {
                name: self._language.compiled(template) for name, template in columns.items()
            }
            self._structured = {
                name
                for name in columns.keys() & {*structured}
                if self._language.is_json(columns[name])
            }
            self._json = {
                name
                for name in columns.keys() & {*_TEXT_OR_MESSAGES}
                if self._language.is_json(columns[name])
            }
        except TemplateSyntaxError as error:
            raise RecipeError(f"columns: a template is not Jinja ({error}); fix it") from None
        except TemplateError as error:
            raise RecipeError(f"columns: a template cannot be used: {error}") from None

    def rows(self, located: Iterable[Located]) -> Iterator[Located]:
        """Yield the rows that the templates write; a row that fails becomes its error.

        A column that a row lacks and others have is null there: tables leave nulls out. It is known
        from the first rows and from those before.
        """
        read = (_parsed_row(at, raw) for at, raw in located)
        first = list(itertools.islice(read, _LOOKED_AT))
        columns: dict[str, Any] = {}
        for _, row in first:
            columns |= dict.fromkeys(row) if isinstance(row, dict) else {}
        for at, row in itertools.chain(first, read):
            if isinstance(row, DataError):
                yield at, row
                continue
            columns |= dict.fromkeys(row)
            try:
                yield at, self.apply({**columns, **row}, at)
            except DataError as error:
                yield at, error

    def apply(self, row: dict[str, Any], at: str) -> dict[str, Any]:
        """Return the row that the templates write; empty texts are left out.

        A column whose name is no word is written ``row['Two words']``.

        Null is empty text, and so is a key that an inner object does not have: some files hold a
        null where others leave the key out. A column that the row does not have is an error.

        Raises:
            DataError: A template names a column that the row does not have, fails on it, or writes
                no question or no answer.
        """
        written: dict[str, Any] = {}
        self._language.start_row()
        for name, template in self._templates.items():
            try:
                text = "".join(template.generate({"row": row, **row}))
            except (TemplateError, *_FAILS_SO) as error:
                raise DataError(
                    f"{at}: the template of {name!r} fails on this row ({error}); its columns are "
                    f"{', '.join(map(shown, list(row)[:8]))}"
                ) from None
            is_json = name in _JSON_FIELDS or name in self._json or name in self._structured
            if not text.strip() or (is_json and text.strip() == "null"):
                if name in _ANSWERS:
                    raise DataError(
                        f"{at}: the template of {name!r} writes nothing on this row (a column is "
                        "null or empty); fill it, or remove the row"
                    )
                continue
            if name in self._json:
                written[name] = _of_json(text)
            else:
                parsed = name in _JSON_FIELDS or name in self._structured
                written[name] = _parsed(name, text, at) if parsed else text
        return written


def _parsed_row(at: str, raw: Raw) -> tuple[str, dict[str, Any] | DataError]:
    try:
        return at, parse_object(raw, at) if isinstance(raw, bytes) else raw
    except DataError as error:
        return at, error


def _of_json(text: str) -> str:
    """Return what a template has written as JSON when it is text, else the JSON."""
    return json.loads(text) if text.lstrip().startswith('"') else text


def _parsed(name: str, text: str, at: str) -> object:
    if name == "label" and text.strip() in ("True", "False"):  # as a template writes a comparison
        return text.strip() == "True"
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
        self.filters = {name: _null_stays(self.filters[name]) for name in _FILTERS}
        self.filters |= {"d": _default, "default": _default}
        self.filters |= {"round": _null_stays(_round), "trim": _null_stays(_trim)}
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

    def is_json(self, source: str) -> bool:
        """Return whether a template is one expression that the filter ``tojson`` ends."""
        written = [
            part
            for output in self.parse(source.strip()).body
            for part in (output.nodes if isinstance(output, nodes.Output) else [output])
        ]
        return len(written) == 1 and (
            isinstance(written[0], nodes.Filter) and written[0].name == "tojson"
        )

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

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return ``obj.attribute``; of an object of the row without that key, null."""
        if obj is None or isinstance(obj, dict):
            return None if obj is None else obj.get(attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return ``obj[argument]``; of an object of the row without that key, null."""
        if obj is None or (isinstance(obj, dict) and isinstance(argument, str)):
            return None if obj is None else obj.get(argument)
        return super().getitem(obj, argument)

    def _written(self, value: Any) -> Any:
        """Count what is written; a list is as long as its JSON, which is counted piece by piece."""
        if value is None:
            return ""
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
        written = [self._written(item) for item in value]
        self._spend(len(separator) * len(value))
        return separator.join(map(str, written))

    def _to_json(self, value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        """Return a value as JSON in the row's order, as the filter of transformers' templates."""
        if indent is not None and not (isinstance(indent, int) and 0 <= indent <= _MOST_INDENT):
            raise SecurityError(f"'tojson' takes an indent of 0 to {_MOST_INDENT}")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, allow_nan=False)
        parts = []
        for part in encoder.iterencode(value):
            self._spend(len(part))
            parts.append(part)
        return "".join(parts)


def _null_stays(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that leaves null alone: else ``upper`` would write NONE and ``int`` a 0."""

    def of_value(value: Any, *arguments: Any, **named: Any) -> Any:
        return None if value is None else filter_(value, *arguments, **named)

    return of_value


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    """Return the value, or the default for null and for a column that the row does not have."""
    missing = value is None or isinstance(value, Undefined)
    return default_value if missing or (boolean and not value) else value


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    """Return a rounded number; ``10 ** precision`` is bounded."""
    if not isinstance(precision, int) or abs(precision) > _MOST_DIGITS:
        raise SecurityError(f"'round' takes {-_MOST_DIGITS} to {_MOST_DIGITS} digits")
    return do_round(value, precision, method)  # pyright: ignore[reportArgumentType]


def _trim(value: Any, chars: str | None = None) -> str:
    """Return a text without white space, or other characters, at its ends."""
    if chars is not None and len(chars) > _MOST_TRIMMED:
        raise SecurityError(f"'trim' takes at most {_MOST_TRIMMED} characters")
    return do_trim(value, chars)
