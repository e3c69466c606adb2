"""The two pages that are made from the program: ``reference.md`` and ``commands.md``.

``python docs/generate.py`` writes both; a test holds the files against it. Written by hand, a
default or an option that changes would be found by a reader; here it is found by a test.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from enum import EnumMeta
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from gptoss_tune.cli import COMMANDS
from gptoss_tune.recipe import Recipe, recipe_json_schema
from gptoss_tune.recipe.data_schema import DataSource
from gptoss_tune.recipe.json_schema import expected_phrase, setting_descriptions
from gptoss_tune.recipe.recipe import SECTIONS
from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.recipe.schema.value_types import Section

FOLDER = Path(__file__).resolve().parent
_MADE = "<!-- Made by: python docs/generate.py -->"
_TYPES = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}


def reference() -> str:
    """Return the page of every setting of a recipe, section by section."""
    head = f"""# Configuration

{_MADE}

Every setting of a recipe, from the schema that checks it. What a recipe does not say has the
default; a setting without one is **required**. Lay `key=value` over a recipe with the dotted name:
`train.max_steps=100`. Paths are relative to the current directory.

```bash
gptoss-tune check RECIPE              # the whole recipe with its defaults, or every mistake in it
gptoss-tune schema                    # the same as JSON Schema, for editors
```
"""
    return "\n".join([head, _contents(), *_sections()])


def _contents() -> str:
    """Return a table of the sections."""
    rows = []
    for name, text in setting_descriptions(Recipe).items():
        rows.append(f"| [`{name}`](#{name}) | {text} |")
    return "\n".join(["| section | holds |", "|---|---|", *rows, ""])


def _sections() -> Iterator[str]:
    for path, section in SECTIONS.items():
        name = ".".join(path)
        level = "#" * (1 + len(path))
        if path == ("method",):
            yield f"{level} method\n\n{setting_descriptions(Recipe)['method']}\n"
            yield "Which to take: [methods.md](methods.md).\n"
            for method, own in METHODS.items():
                yield f"### method: {{name: {method}}}\n\n{inspect.getdoc(own)}\n"
                yield _table(own, "method.", method)
            continue
        yield f"{level} {name}\n\n{inspect.getdoc(section)}\n"
        yield _table(section, f"{name}.")
        if path == ("data",):
            yield f"### A source of data.train and data.eval\n\n{inspect.getdoc(DataSource)}\n"
            yield _table(DataSource, "")


def _table(section: type[Section], prefix: str, method: str | None = None) -> str:
    """Return the settings of one section as a table."""
    schema, texts = _schema_of(section), setting_descriptions(section)
    rows = ["| setting | takes | default | what it is |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        if nested:
            takes, default = f"[a section](#{(prefix + name).replace('.', '')})", ""
        elif method is not None and name == "name":
            takes, default = method, "`sft`" if method == "sft" else "**required**"
        else:
            takes = expected_phrase(schema["properties"][name]).replace("like ", "such as ")
            default = "**required**" if field.is_required() else f"`{_default(field)}`"
        cells = [f"`{prefix}{name}`", takes, default, _described(texts.get(name, ""))]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _schema_of(section: type[Section]) -> dict[str, Any]:
    return recipe_json_schema()["$defs"][section.__name__]


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _described(text: str) -> str:
    """Return a description as Markdown: tags in it, such as <think>, are text."""
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("``", "`")


def commands() -> str:
    """Return the page of every command, as the help pages have it."""
    head = f"""# Commands

{_MADE}

The same as `gptoss-tune COMMAND --help`. `--debug` shows tracebacks, `--version` the version.
Exit codes: 0 done, 2 your input, 3 the machine, 4 `verify --served` cannot tell tuned model and
base apart, 5 something that `benchmark --require` wants does not hold, 75 stopped and resumable.
"""
    parts = [head]
    for group, members in COMMANDS.items():
        parts.append(f"## {group}\n")
        for name, command in members.items():
            parts.append(_command(name, command))
    return "\n".join(parts)


def _command(name: str, command: Callable[..., Any]) -> str:
    """Return the section of one command."""
    usage, needed, rows = [f"gptoss-tune {name}"], [], []
    hints = typing.get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        if hints[parameter.name] is typer.Context:
            continue
        shape, info = _annotation(hints[parameter.name])
        default = parameter.default
        required = default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            word = info.metavar or parameter.name.upper()
            many = " ..." if _is_list(shape) and not word.endswith("...") else ""
            usage.append(f"{word}{many}" if required else f"[{word}{many}]")
            rows.append((f"`{word}`", info.help or "", _shown(default, required)))
        elif not info.hidden:
            spelled = _spelled(parameter.name, info, shape)
            if required:
                needed.append(spelled.replace("\\|", "|"))
            rows.append((f"`{spelled}`", info.help or "", _shown(default, required)))
    line = " ".join([*usage, *needed, "[OPTIONS]"])
    lines = [f"### {name}\n", f"```text\n{line}\n```\n", f"{_help(command)}\n"]
    if rows:
        lines.append("| | what it is | default |\n|---|---|---|")
        lines += [f"| {word} | {_described(text)} | {default} |" for word, text, default in rows]
        lines.append("")
    return "\n".join(lines)


def _help(command: Callable[..., Any]) -> str:
    text = inspect.getdoc(command) or ""
    return _described(text.split("\f")[0].strip())


def _annotation(hint: Any) -> tuple[Any, Any]:
    """Return the plain type of a parameter and what typer was told of it."""
    shape, *metadata = typing.get_args(hint)
    (info,) = [entry for entry in metadata if isinstance(entry, OptionInfo | ArgumentInfo)]
    if isinstance(shape, types.UnionType) or typing.get_origin(shape) is typing.Union:
        (shape,) = [part for part in typing.get_args(shape) if part is not type(None)]
    return shape, info


def _is_list(shape: Any) -> bool:
    return typing.get_origin(shape) in (list, tuple)


def _spelled(name: str, info: OptionInfo, shape: Any) -> str:
    """Return an option with its value, such as ``--nodes NUMBER``."""
    # In an annotation typer keeps the first spelling where a default would stand.
    first = [info.default] if isinstance(info.default, str) else []
    names = [*first, *(info.param_decls or ())]
    if not names:
        plain = f"--{name.replace('_', '-')}"
        names = [f"{plain}/--no-{plain[2:]}" if shape is bool else plain]
    if shape is bool:
        return ", ".join(names)
    inner = typing.get_args(shape)[0] if _is_list(shape) else shape
    word = info.metavar or _TYPES.get(inner, "TEXT")
    if isinstance(inner, EnumMeta):
        word = "|".join(str(member.value) for member in inner)
    return f"{', '.join(names)} {word}".replace("|", "\\|")


def _shown(default: Any, required: bool) -> str:
    if required:
        return "**required**"
    if default is None or default is False or default == []:
        return ""
    if default is True:
        return "on"
    value = getattr(default, "value", default)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its place."""
    texts = {"reference.md": reference(), "commands.md": commands()}
    return {FOLDER / name: re.sub(r"\n{3,}", "\n\n", text) for name, text in texts.items()}


if __name__ == "__main__":
    for place, text in pages().items():
        place.write_text(text, encoding="utf-8")
