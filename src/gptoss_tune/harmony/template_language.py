"""The part of Jinja that column templates are written in, with an end to everything it does.

Jinja's sandbox keeps a template from Python's insides (CVE-2026-5760 is what happens without it),
and lets it take for ever: ``{% for %}`` in ``{% for %}`` over a long text, ``'a' * 10**9``, a
padding of a gigabyte. A recipe may come from anyone, so templates are data here and no programs:
expressions, conditions, loops, a list of filters and methods; no macros, imports, assignments or
functions. What remains is counted while it runs: rounds of loops, characters written, seconds.

A process with limits for every template was the alternative: it bounds a template no better and
costs a copy of every row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final, cast

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import htmlsafe_json_dumps
from jinja2.visitor import NodeTransformer

MOST_CHARACTERS: Final = 64 << 20
"""Characters that the templates of one row may produce; 131,072 tokens have at most 16 Mi."""
MOST_ROUNDS: Final = 1_000_000
"""Rounds of all loops of one row."""
MOST_SECONDS: Final = 10.0
"""Time for one row, looked at in loops."""
_MOST_JOINED: Final = 64
_LARGEST_NUMBER: Final = 10**18

_NODES: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Const),
    *(nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Call),
    *(nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Concat),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg, nodes.Pos),
    *(nodes.List, nodes.Dict, nodes.Pair, nodes.Tuple, nodes.Keyword),
)
# fmt: off
_FILTERS: Final = frozenset(
    {
        "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
        "int", "items", "last", "length", "list", "lower", "map", "reject", "rejectattr", "reverse",
        "round", "safe", "select", "selectattr", "sort", "string", "title", "tojson", "trim",
        "unique", "upper",
    }
)
_METHODS: Final = frozenset(
    {
        "capitalize", "count", "endswith", "find", "get", "index", "isalpha", "isdigit",
        "isnumeric", "isspace", "items", "keys", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines",
        "startswith", "strip", "title", "upper", "values",
    }
)
# fmt: on
_BOUNDED, _ROUNDS = "bounded_", "rounds_"


class TemplateLanguage(ImmutableSandboxedEnvironment):
    """Compiles templates of the language, and counts what they do."""

    intercepted_binops = frozenset({"+", "*", "%"})

    def __init__(self) -> None:
        """Know no globals, and of the filters those on the list."""
        super().__init__(undefined=StrictUndefined, autoescape=False)
        self.globals.clear()
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.filters |= {"join": self._join, "replace": self._replace, "tojson": _to_json}
        self.filters |= {_BOUNDED: self._bounded, _ROUNDS: self._rounds}
        self.start_row()

    def start_row(self) -> None:
        """Begin to count anew."""
        self._characters, self._rounds_left = MOST_CHARACTERS, MOST_ROUNDS
        self._ends = time.monotonic() + MOST_SECONDS

    def compiled(self, source: str) -> Template:
        """Return a template of the language.

        Raises:
            TemplateError: It is no Jinja, or uses what the language does not have.
        """
        try:
            tree = self.parse(source)
            for node in [tree, *tree.find_all(nodes.Node)]:
                _check(node)
            counted = _Counted(self).visit(tree)
            code = self.compile(counted)
        except RecursionError:
            raise SecurityError("it is nested too deeply") from None
        return Template.from_code(self, code, {}, None)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the sum or product of numbers, or the sum of texts or lists."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator != "+" and not numbers:
            raise SecurityError(f"'{operator}' takes two numbers")
        if numbers and max(abs(left), abs(right)) > _LARGEST_NUMBER:
            raise SecurityError("a number is too large")
        return super().call_binop(context, operator, left, right)

    def _bounded(self, value: Any) -> Any:
        """Pass a value on, counting what it holds."""
        if isinstance(value, str | list | tuple | dict):
            self._spend(len(value))
        return value

    def _rounds(self, value: Any) -> Iterator[Any]:
        """Yield what a loop runs over, counting its rounds."""
        for item in value:
            self._rounds_left -= 1
            if self._rounds_left < 0:
                raise SecurityError(f"its loops make more than {MOST_ROUNDS:,} rounds")
            if time.monotonic() > self._ends:
                raise SecurityError(f"it takes longer than {MOST_SECONDS:g} s")
            yield item

    def _spend(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise SecurityError(f"it writes more than {MOST_CHARACTERS:,} characters")

    def _join(self, value: Any, separator: str = "", attribute: str | None = None) -> str:
        """Return texts joined, each counted before it is."""
        texts = []
        for item in self._rounds(value):
            text = str(item[attribute] if attribute is not None else item)
            self._spend(len(text) + len(str(separator)))
            texts.append(text)
        return str(separator).join(texts)

    def _replace(self, text: Any, old: str, new: str, count: int = -1) -> str:
        """Return the text with ``old`` replaced, its length counted before."""
        text = str(text)
        times = text.count(old) if count < 0 else min(count, text.count(old))
        self._spend(len(text) + times * len(new))
        return text.replace(old, new, count)


class _Counted(NodeTransformer):
    """Puts the counting into a template: around what makes texts, and into every loop."""

    def __init__(self, environment: TemplateLanguage) -> None:
        self._environment = environment

    def _filtered(self, node: nodes.Node, name: str) -> nodes.Filter:
        made = nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)
        made.set_environment(self._environment)
        return made

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, _ROUNDS)
        return node

    def _text(self, node: nodes.Expr) -> nodes.Filter:
        self.generic_visit(node)
        return self._filtered(node, _BOUNDED)

    visit_Concat = visit_Add = visit_Filter = visit_Call = visit_Getitem = _text


def _to_json(value: Any) -> str:
    """Return a value as JSON, as Jinja's filter does without its width."""
    return htmlsafe_json_dumps(value, sort_keys=True)


def _check(node: nodes.Node) -> None:
    """Refuse what is not of the language.

    Raises:
        TemplateError: Says what.
    """
    if not isinstance(node, _NODES) or type(node) not in _NODES:
        raise TemplateError(f"line {node.lineno}: {type(node).__name__} is not part of templates")
    if isinstance(node, nodes.For) and node.recursive:
        raise TemplateError(f"line {node.lineno}: a loop cannot be recursive")
    if isinstance(node, nodes.Concat) and len(node.nodes) > _MOST_JOINED:
        raise TemplateError(f"line {node.lineno}: more than {_MOST_JOINED} texts joined by '~'")
    if isinstance(node, nodes.Filter):
        if node.name not in _FILTERS | {"join", "replace"}:
            known = ", ".join(sorted(_FILTERS | {"join", "replace"}))
            raise TemplateError(f"line {node.lineno}: no filter '{node.name}'; there are {known}")
        if node.name == "tojson" and (node.args or node.kwargs):
            raise TemplateError(f"line {node.lineno}: 'tojson' takes nothing")
    if isinstance(node, nodes.Call) and not (
        isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS
    ):
        raise TemplateError(
            f"line {node.lineno}: functions cannot be called, of the methods these: "
            f"{', '.join(sorted(_METHODS))}"
        )
