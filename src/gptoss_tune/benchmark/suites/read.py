"""A suite file: YAML to ``SuiteFile``, every mistake with file, line and column in one message."""

from __future__ import annotations

import difflib
import functools
from typing import Any

from pydantic import ValidationError

from gptoss_tune.benchmark.suites.schema import SuiteFile
from gptoss_tune.recipe.json_schema import expected_phrase, resolved, variants
from gptoss_tune.recipe.load import file_text
from gptoss_tune.recipe.mistakes import KeyPath, Mistake, Place, RecipeMistakes, dotted, shown
from gptoss_tune.recipe.yaml_reader import Document, read_document


def read_suite_file(path: str) -> SuiteFile:
    """Return what a suite file says.

    Args:
        path: As messages name it.

    Raises:
        RecipeMistakes: The file cannot be read, or has mistakes; all are in the message.
    """
    document = read_document(file_text(path), lambda line, column: Place(0, line, column, path))
    if not document.readable:
        raise RecipeMistakes(path, document.mistakes)
    try:
        suite = SuiteFile.model_validate(document.values)
    except ValidationError as error:
        found = [_mistake(dict(item), document, path) for item in error.errors(include_url=False)]
        known = {str(mistake.key) for mistake in document.mistakes}
        found = [mistake for mistake in found if mistake.key not in known]
        raise RecipeMistakes(path, [*document.mistakes, *found]) from None
    if document.mistakes:
        raise RecipeMistakes(path, document.mistakes)
    return suite


def _mistake(item: dict[str, Any], document: Document, path: str) -> Mistake:
    """Return what pydantic found, at its place."""
    location, kind = item["loc"], item["type"]
    if "[key]" in location:  # how pydantic says that a mapping's key is wrong
        location, kind = location[: location.index("[key]")], "extra_forbidden"
    if kind in ("extra_forbidden", "missing"):
        above, key = _as_written(location[:-1], document), str(location[-1])
        return _of_key((*above, key), kind, document, path)
    written = _as_written(location, document)
    place = document.value_places.get(written, Place(0, 1, 1, path))
    got = shown(item["input"], document.spelled.get(written)) if written else "something else"
    if kind == "recipe_value":
        expected, todo = item["ctx"]["expected"], item["ctx"]["todo"]
    else:
        expected, todo = expected_phrase(_node_at(written) or {}), "correct it"
    return Mistake(place, dotted(written), got, expected, todo)


def _of_key(where: KeyPath, kind: str, document: Document, path: str) -> Mistake:
    """Return what to say about a key that is missing, or that there is not."""
    above, key = where[:-1], str(where[-1])
    whole = Place(0, 1, 1, path)
    if kind == "missing":
        node = _node_at(where) or {}
        example = next(iter(node.get("examples", ())), "...")
        place = document.key_places.get(above, whole)
        todo = f"write for example '{key}: {example}'"
        return Mistake(place, dotted(where), "nothing", expected_phrase(node), todo)
    known = _names_below(above)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    todo = f"did you mean {near[0]}?" if near else "remove it"
    place = document.key_places.get(where, whole)
    return Mistake(place, dotted(where), "an unknown key", f"one of {', '.join(known)}", todo)


def _as_written(location: KeyPath, document: Document) -> KeyPath:
    """Return the part of a location that stands in the file: ``tasks: a`` is checked as a list."""
    path: KeyPath = ()
    for part in location:
        if (*path, part) in document.value_places:
            path = (*path, part)
    return path


@functools.cache
def _schema() -> dict[str, Any]:
    return SuiteFile.model_json_schema()


def _node_at(path: KeyPath) -> dict[str, Any] | None:
    """Return the schema of the value at a path; ``None``: there is no such key."""
    schema = _schema()
    node: dict[str, Any] = schema
    for part in path:
        below = None
        for variant in variants(node, schema):
            if isinstance(part, int):
                below = below or variant.get("items")
            elif part in variant.get("properties", {}):
                below = variant["properties"][part]
            elif below is None and isinstance(variant.get("additionalProperties"), dict):
                below = variant["additionalProperties"]
        if below is None:
            return None
        node = below
    return _inlined(resolved(node, schema))


def _inlined(node: Any) -> Any:
    """Return a node with every reference in it resolved, for what words it."""
    if isinstance(node, dict):
        found = resolved(node, _schema())
        return {key: _inlined(value) for key, value in found.items()}
    return [_inlined(entry) for entry in node] if isinstance(node, list) else node


def _names_below(path: KeyPath) -> list[str]:
    """Return the keys that the mapping at a path can have."""
    schema = _schema()
    names: list[str] = []
    for variant in variants(_node_at(path) or {}, schema):
        names += variant.get("properties", ())
        for kind in variants(variant.get("propertyNames", {}), schema):
            names += kind.get("enum", ())
    return list(dict.fromkeys(names))
