"""A recipe as strangers may read it: what it trained, without the places of this machine.

A path says who the customer was and how the machine is laid out. So every value whose type in the
schema is a path is replaced by its last part; a list of such fields' names was the alternative, and
the next field that names a file would not have stood in it. What the schema does not know is left
out: nothing says what it holds.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

import yaml

from gptoss_tune.recipe.recipe import Recipe
from gptoss_tune.recipe.schema import METHODS, SftSection, method_name
from gptoss_tune.recipe.schema.value_types import PathMark, Section, is_hub_name

_JUDGE: Final = "http://localhost:8000"
"""In the place of a judge's address, which says where somebody's machines are."""
_SAMPLER: Final = {"server_url": "http://localhost:8000/v1", "server_folder": "shared"}
"""In the place of a sampler's address, and of the folder that it is handed weights in."""


def public_recipe(record: Mapping[str, Any], base: str) -> str | None:
    """Return the recipe of a run as YAML, its paths in their public form; None without one.

    Args:
        record: ``run.json``.
        base: The base's public name, which stands for its path.
    """
    recipe = record.get("recipe")
    if not recipe:
        return None
    found = _published(copy.deepcopy(recipe), Recipe, datasets_on_hub(record))
    found.setdefault("model", {})["name_or_path"] = base
    found.get("train", {}).update(output_dir="runs/reproduction", resume="auto")
    found.pop("tracking", None)
    safety = (found.get("evaluation") or {}).get("safety") or {}
    for name in ("judge", "second_judge"):
        if (safety.get(name) or {}).get("url") is not None:
            safety[name]["url"] = _JUDGE
    method = found.get("method") or {}
    method.update({name: v for name, v in _SAMPLER.items() if method.get(name) is not None})
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def data_names(record: Mapping[str, Any]) -> list[str]:
    """Return the public names of the training data, in the recipe's order."""
    sources = record.get("recipe", {}).get("data", {}).get("train") or []
    return [public_name(source["path"], datasets_on_hub(record)) for source in sources]


def datasets_on_hub(record: Mapping[str, Any]) -> set[str]:
    """Return the sources that the run did not read from a file: datasets by name on the Hub.

    What looks like ``owner/name`` may be a folder: the record says which were files, with their
    hashes. Where it does not, no name counts as one on the Hub.
    """
    return {
        read["path"]
        for read in record.get("data") or []
        if read.get("sha256") is None and is_hub_name(read.get("path") or "")
    }


def public_name(path: str, on_hub: Collection[str]) -> str:
    """Return a dataset's name on the Hub as it is, and of a local path the last part."""
    if path in on_hub:
        return path
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].lstrip("~") or "local"


def _published(value: Any, kind: Any, on_hub: Collection[str]) -> Any:
    """Return ``value`` of the type ``kind`` with every path in it replaced."""
    if get_origin(kind) is Annotated:
        inner, *marks = get_args(kind)
        if PathMark in marks and isinstance(value, str):
            return public_name(value, on_hub)
        return _published(value, inner, on_hub)
    if get_origin(kind) in (Union, types.UnionType):
        for choice in get_args(kind):
            value = _published(value, choice, on_hub)
        return value
    if get_origin(kind) is list and isinstance(value, list):
        return [_published(entry, get_args(kind)[0], on_hub) for entry in value]
    if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, dict):
        return {
            name: _published(value[name], _annotation(kind, name, value[name]), on_hub)
            for name in kind.model_fields
            if name in value
        }
    return value


def _annotation(section: type[Section], name: str, value: Any) -> Any:
    """Return a field's type with its marks, which pydantic keeps apart from it.

    The section of the method is one of several; which fields it has, its own name says.
    """
    if section is Recipe and name == "method":
        return METHODS.get(method_name(value), SftSection)
    field = section.model_fields[name]
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
