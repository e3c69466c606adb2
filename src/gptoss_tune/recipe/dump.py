"""Serialisation of a recipe to YAML: every setting, read back as an equal recipe.

Written by hand rather than by PyYAML, whose idea of which texts need quotes is that of YAML 1.1:
it leaves the text ``1e-5`` bare, and YAML 1.2 reads that as a number.

``recipe_yaml`` spells out every default; ``short_yaml`` writes the settings that it is given, each
with its reason, as a person would.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gptoss_tune.display import one_line
from gptoss_tune.recipe.data_schema import DataSource
from gptoss_tune.recipe.recipe import Recipe
from gptoss_tune.recipe.schema.value_types import Section
from gptoss_tune.recipe.yaml_reader import scalar

_BARE = re.compile(r"[A-Za-z_./][\w./+-]*", re.ASCII)
_SWITCH_WORDS = {"y", "n", "yes", "no", "on", "off"}  # bools to YAML 1.1
_WIDEST = 100


@dataclass(frozen=True, slots=True)
class ResolvedLine:
    """One line of a resolved recipe, such as ``  rank: 32`` of ``lora.rank``."""

    text: str
    setting: str
    """Dotted name of the setting that the line belongs to, or of the section that it opens."""
    kind: Literal["section", "default", "changed"]
    """A setting is changed when its value is not the default, or when it has none."""
    note: str | None = None
    """On the first line of a changed setting: ``default 16``, or ``required``."""


def recipe_yaml(recipe: Recipe) -> str:
    """Return the whole recipe as YAML text, the same bytes for equal recipes.

    ``load_recipe`` on it gives an equal recipe; so do YAML 1.1 readers such as PyYAML.
    """
    return "".join(f"{line.text}\n" for line in resolved_lines(recipe))


def resolved_lines(recipe: Recipe) -> Iterator[ResolvedLine]:
    """Yield the lines of ``recipe_yaml`` with what each differs from."""
    yield from _section_lines(recipe, ())


@dataclass(frozen=True, slots=True)
class Noted:
    """The value of a setting and, for a comment beside it, why it is that."""

    value: Any
    note: str | None = None


def short_yaml(settings: Mapping[str, Noted], heading: Sequence[str]) -> str:
    """Return a recipe that holds these settings alone, in the order of the schema.

    ``short_yaml({"lora.rank": Noted(8, "fits 16 GB")}, ["Chats."])`` is ``# Chats.``, ``lora:``,
    ``  rank: 8  # fits 16 GB``.

    Args:
        settings: By dotted name, such as ``train.learning_rate``.
        heading: Paragraphs at the top, as comments.
    """
    nested: dict[str, Any] = {}
    for name, noted in settings.items():
        *sections, last = name.split(".")
        here = nested
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = noted
    lines = [line for text in heading for line in _comment(text, "")]
    return "\n".join([*lines, *_noted_lines(nested, Recipe, "")]) + "\n"


def _noted_lines(nested: Mapping[str, Any], section: type[Section], indent: str) -> Iterator[str]:
    order = {name: place for place, name in enumerate(section.model_fields)}
    for name in sorted(nested, key=lambda name: order.get(name, len(order))):
        entry = nested[name]
        if isinstance(entry, dict):
            yield f"{indent}{name}:"
            field = section.model_fields.get(name)
            inner: Any = field.annotation if field is not None else None
            known = isinstance(inner, type) and issubclass(inner, Section)
            yield from _noted_lines(entry, inner if known else Section, f"{indent}  ")
            continue
        first, *rest = _short_value_lines(name, entry.value)
        # A note may quote a stranger's file, whose line feeds would end the comment.
        comment = f"  # {one_line(entry.note)}" if entry.note else ""
        if comment and len(f"{indent}{name}:{first}{comment}") > _WIDEST:
            yield from _comment(entry.note, indent)
            comment = ""
        yield f"{indent}{name}:{first}{comment}"
        yield from (f"{indent}  {line}" for line in rest)


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    further = start + ("  " if text.startswith("- ") else "")
    wrapped = textwrap.wrap(
        one_line(text), _WIDEST, initial_indent=start, subsequent_indent=further
    )
    return wrapped or [start.rstrip()]


def _short_value_lines(name: str, value: Any) -> list[str]:
    """Return what follows ``name:``; a source with settings of its own has a line for each."""
    sources = value if name in ("train", "eval") and isinstance(value, list) else None
    if sources is None or (len(sources) == 1 and isinstance(sources[0], str)):
        return [f" {_text(value if sources is None else sources[0])}"]
    lines = [""]
    for source in sources:
        if isinstance(source, str):
            lines.append(f"- {_text(source)}")
            continue
        for number, (key, entry) in enumerate(source.items()):
            mark = "- " if number == 0 else "  "
            if isinstance(entry, dict):
                lines.append(f"{mark}{key}:")
                lines += [f"    {column}: {_text(template)}" for column, template in entry.items()]
            else:
                lines.append(f"{mark}{key}: {_text(entry)}")
    return lines


def by_name(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a recipe's JSON by dotted names, such as ``train.learning_rate``."""
    found: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            found |= by_name(entry, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = entry
    return found


def _section_lines(section: Section, path: tuple[str, ...]) -> Iterator[ResolvedLine]:
    indent = "  " * len(path)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        setting = ".".join((*path, name))
        if isinstance(value, Section):
            yield ResolvedLine(f"{indent}{name}:", setting, "section")
            yield from _section_lines(value, (*path, name))
            continue
        kind, note = "default", None
        if field.is_required():
            kind, note = "changed", "required"
        elif value != (default := field.get_default(call_default_factory=True)):
            kind, note = "changed", f"default {_text(default)}"
        first, *rest = _value_lines(value)
        yield ResolvedLine(f"{indent}{name}:{first}", setting, kind, note)
        for line in rest:
            yield ResolvedLine(f"{indent}{line}", setting, kind)


def _value_lines(value: Any) -> list[str]:
    """Return what follows ``name:``, and the lines below it for several sources."""
    if isinstance(value, list) and value and isinstance(value[0], DataSource):
        if len(value) == 1:
            return [f" {_text(value[0])}"]
        return ["", *(f"  - {_text(source)}" for source in value)]
    return [f" {_text(value)}"]


def _text(value: Any) -> str:
    """Return a value as one line of YAML that means the same in YAML 1.1 and 1.2."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return repr(value) if not e or "." in mantissa else f"{mantissa}.0e{exponent}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, DataSource):
        settings = value.model_dump(exclude_defaults=True)
        return _text(value.path if list(settings) == ["path"] else settings)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    bare = _BARE.fullmatch(value) and value.lower() not in _SWITCH_WORDS
    return value if bare and scalar(value) == value else json.dumps(value, ensure_ascii=False)
