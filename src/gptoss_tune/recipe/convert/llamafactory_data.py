"""LLaMA-Factory's data sets: names in ``dataset_info.json``, which says where and how they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.recipe.convert.draft import Draft, as_list
from gptoss_tune.recipe.convert.source import ROLES, same_spelling
from gptoss_tune.recipe.convert.templates import (
    optional,
    preference_templates,
    question_and_answer,
    system_of,
    written,
)
from gptoss_tune.recipe.dump import Noted

_ALPACA: Final = {"prompt": "instruction", "query": "input", "response": "output"}
_TAGS: Final = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}


def data_sets(draft: Draft, key: str, setting: str, rows: str) -> None:
    """Convert the names of data sets to sources.

    Args:
        draft: The recipe.
        key: ``dataset`` or ``eval_dataset``.
        setting: ``data.train`` or ``data.eval``.
        rows: What a row is to the method.

    Raises:
        RecipeError: ``dataset_info.json`` is not there, or does not have one of them.
    """
    names = [str(name) for name in as_list(draft.get(key))]
    folder = str(draft.get("dataset_dir", "data"))
    limit = draft.get("max_samples")
    sources: list[str | dict[str, Any]] = []
    notes: list[str] = []
    described = {} if folder == "ONLINE" else _described(draft, folder, key)
    for name in names:
        entry = {"hf_hub_url": name} if folder == "ONLINE" else described.get(name)
        if not isinstance(entry, dict):
            raise draft.refuse(
                key,
                f"data sets that {_info_file(draft, folder)} describes",
                f"add {name!r} to it, or remove it",
            )
        source = _source(draft, key, name, entry, folder, rows, notes)
        if limit is not None:
            source["limit"] = limit
        sources.append(source["path"] if list(source) == ["path"] else source)
    told = "; ".join(dict.fromkeys(notes))
    draft.settings[setting] = Noted(sources, f"{key}: {', '.join(names)}")
    draft.places[tuple(setting.split("."))] = draft.place((key,))
    if told:
        draft.none(key, f"{setting} has its data sets, but {told}")
    else:
        draft.also(key, f"{setting}: {', '.join(_paths_of(sources))}")


def _paths_of(sources: list[str | dict[str, Any]]) -> list[str]:
    return [source if isinstance(source, str) else source["path"] for source in sources]


def _info_file(draft: Draft, folder: str) -> Path:
    if draft.options.dataset_info is not None:
        return Path(draft.options.dataset_info)
    beside = Path(draft.name).parent
    tried = [Path(folder), *(place / folder for place in (beside, *list(beside.parents)[:3]))]
    found = next((place for place in tried if (place / "dataset_info.json").is_file()), None)
    return (found or Path(folder)) / "dataset_info.json"


def _described(draft: Draft, folder: str, key: str) -> dict[str, Any]:
    path = _info_file(draft, folder)
    if not path.is_file():
        raise draft.refuse(
            key,
            f"{path}, which says what these names mean",
            "convert where it is, or name it: --dataset-info FILE",
        )
    try:
        return read_object(path)
    except (DataError, OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); correct it") from None


def _source(
    draft: Draft,
    key: str,
    name: str,
    entry: dict[str, Any],
    folder: str,
    rows: str,
    notes: list[str],
) -> dict[str, Any]:
    source = _where(draft, key, name, entry, folder, notes)
    if isinstance(entry.get("num_samples"), int):
        source["limit"] = entry["num_samples"]
    columns = entry.get("columns") if isinstance(entry.get("columns"), dict) else {}
    assert isinstance(columns, dict)
    media = [kind for kind in ("images", "videos", "audios") if columns.get(kind)]
    if media:
        notes.append(f"gpt-oss reads text alone: {name} has {', '.join(media)}")
    if entry.get("formatting") in ("sharegpt", "openai"):
        templates = _messages(draft, name, entry, columns, rows, notes)
    elif draft.get("stage") == "pt":
        text = columns.get("prompt", "text")
        templates = {} if text == "text" else {"text": written(text)}
    else:
        templates = _alpaca(name, columns, rows, notes)
    if templates:
        source["columns"] = templates
    return source


def _where(
    draft: Draft, key: str, name: str, entry: dict[str, Any], folder: str, notes: list[str]
) -> dict[str, Any]:
    if entry.get("hf_hub_url"):
        source = {"path": str(entry["hf_hub_url"])}
        for theirs, ours in (("subset", "name"), ("split", "split")):
            if entry.get(theirs) and entry[theirs] != "train":
                source[ours] = str(entry[theirs])
        if entry.get("folder"):
            notes.append(f"of {name} the whole repository is read, not folder {entry['folder']}")
        return source
    if not entry.get("file_name"):
        raise draft.refuse(
            key, f"file_name or hf_hub_url of {name!r} in dataset_info.json",
            "download the data set and name its file there",
        )  # fmt: skip
    info = _info_file(draft, folder).parent
    return {"path": (info / str(entry["file_name"])).as_posix()}


def _alpaca(name: str, columns: dict[str, Any], rows: str, notes: list[str]) -> dict[str, str]:
    named = {**_ALPACA, **{key: value for key, value in columns.items() if value}}
    if columns.get("history"):
        left_out = f"the column {columns['history']} is left out: templates have no loops"
        notes.append(f"of {name} {left_out}")
    asked = question_and_answer(
        {"instruction": named["prompt"], "input": named["query"], "output": named["response"]},
        r"\n",
    )
    found = {"prompt": asked["prompt"]}
    if rows == "pair":
        found |= {side: written(named.get(side, side)) for side in ("chosen", "rejected")}
    else:
        found["completion"] = asked["completion"]
    if rows == "label":
        found["label"] = written(named.get("kto_tag", "kto_tag"), as_json=True)
    return found | system_of({"system": str(columns.get("system") or "")})


def _messages(
    draft: Draft,
    name: str,
    entry: dict[str, Any],
    columns: dict[str, Any],
    rows: str,
    notes: list[str],
) -> dict[str, str]:
    tags = entry.get("tags") if isinstance(entry.get("tags"), dict) else {}
    assert isinstance(tags, dict)
    openai = entry.get("formatting") == "openai"
    role = tags.get("role_tag", "role" if openai else "from")
    content = tags.get("content_tag", "content" if openai else "value")
    if not same_spelling(role, content):
        notes.append(f"in {name} a message has {role} and {content}: rename them role and content")
    said = {str(tags[tag]): meant for tag, meant in _TAGS.items() if tags.get(tag)}
    other = {word: meant for word, meant in said.items() if word not in (*ROLES, meant)}
    other.pop("observation", None)
    if other:
        kept = draft.settings.get("data.roles")
        value = {**(kept.value if kept else {}), **other}
        draft.settings["data.roles"] = Noted(value, f"tags of {name}")
    held = columns.get("messages", "messages" if openai else "conversations")
    system, tools = columns.get("system"), columns.get("tools")
    usual = held in ("messages", "conversations") and (system or "system") == "system"
    usual = usual and (tools or "tools") == "tools"
    if rows == "label":
        usual = usual and columns.get("kto_tag", "label") == "label"
    if rows == "pair":
        usual = usual and all(columns.get(side, side) == side for side in ("chosen", "rejected"))
    if usual:
        return {}
    found = {"conversations": written(str(held), as_json=True)}
    if rows == "pair":
        sides = {side: str(columns.get(side, side)) for side in ("chosen", "rejected")}
        found |= {side: written(column, as_json=True) for side, column in sides.items()}
    if rows == "label":
        label = {"label": str(columns.get("kto_tag", "kto_tag"))}
        found |= preference_templates(label)
    if tools:
        found["tools"] = optional(str(tools), as_json=True)
    return found | system_of({"system": str(system or "")})
