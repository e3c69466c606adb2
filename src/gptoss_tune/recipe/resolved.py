"""A recipe back as YAML: every setting, in the schema's order, read back as an equal recipe.

Written by hand rather than by PyYAML, whose idea of which texts need quotes is that of YAML 1.1:
it leaves the text ``1e-5`` bare, and YAML 1.2 reads that as a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptoss_tune.recipe.document import scalar
from gptoss_tune.recipe.schema import DataSource, Recipe, Section

_BARE = re.compile(r"[A-Za-z_./][\w./+-]*", re.ASCII)
_SWITCH_WORDS = {"y", "n", "yes", "no", "on", "off"}  # bools to YAML 1.1


@dataclass(frozen=True, slots=True)
class ResolvedLine:
    """One line of a resolved recipe: ``  rank: 32`` with what it differs from."""

    text: str
    setting: str
    """Dotted name, ``lora.rank``; a section's own name on its line."""
    is_section: bool
    changed: bool
    """True for a value that is not the default, and for a setting that has none."""
    default: str | None
    """The default as YAML; None for a section's line and for a setting without one."""


def recipe_yaml(recipe: Recipe) -> str:
    """Return the whole recipe as YAML text, the same bytes for equal recipes.

    ``load_recipe`` on it gives an equal recipe; so do YAML 1.1 readers such as PyYAML.
    """
    return "".join(f"{line.text}\n" for line in resolved_lines(recipe))


def resolved_lines(recipe: Recipe) -> Iterator[ResolvedLine]:
    """Yield the lines of ``recipe_yaml`` with what each differs from."""
    yield from _section_lines(recipe, ())


def _section_lines(section: Section, path: tuple[str, ...]) -> Iterator[ResolvedLine]:
    indent = "  " * len(path)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        setting = ".".join((*path, name))
        if isinstance(value, Section):
            yield ResolvedLine(f"{indent}{name}:", setting, True, False, None)
            yield from _section_lines(value, (*path, name))
            continue
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True)
        yield ResolvedLine(
            f"{indent}{name}: {_text(value)}",
            setting,
            False,
            required or value != default,
            None if required else _text(default),
        )


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
