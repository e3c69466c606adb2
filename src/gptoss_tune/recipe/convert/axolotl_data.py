"""Axolotl's ``datasets``: where rows come from, and which column is what."""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.recipe.convert.draft import Draft, as_list, is_off
from gptoss_tune.recipe.convert.source import (
    THINKING,
    Source,
    because,
    keep,
    roles,
    same_spelling,
)
from gptoss_tune.recipe.convert.templates import (
    constant,
    optional,
    preference_columns,
    preference_templates,
    question_and_answer,
    system_of,
    text_columns,
    written,
)

_FORMATS: Final = ("json", "csv", "parquet", "arrow", "text")
_HARMONY: Final = "rows are rendered in the harmony format, as gpt-oss is served"
_TEXT_FIELDS: Final = ("field_instruction", "field_input", "field_output", "field_system")
_PAIR_FIELDS: Final = {"field_chosen": "chosen", "field_rejected": "rejected"}


def sources(draft: Draft, key: str, setting: str, rows: str) -> None:
    """Convert a list of data sets.

    Args:
        draft: The recipe.
        key: ``datasets``, ``test_datasets`` or ``pretraining_dataset``.
        setting: ``data.train`` or ``data.eval``.
        rows: ``conversation``, ``pair`` or ``label``.
    """
    entries = draft.get(key)
    listed = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(entry, dict) and entry.get("path") for entry in listed):
        raise draft.refuse(key, "a list of data sets with a path each", "name their paths")
    found: list[str | dict[str, Any]] = []
    for number, entry in enumerate(listed):
        at = (key, number) if isinstance(entries, list) else (key,)
        source = Source(draft, at, entry, setting, len(found))
        files = _place(source)
        _shape(source, rows, key)
        source.rest(_RULES)
        for file in files:
            found.append(Source(draft, at, {}, setting, 0, {**source.values, "path": file}).done())
    keep(draft, key, setting, found)


def _place(source: Source) -> list[str]:
    """Convert where the rows are; several files of one entry are several sources."""
    path = str(source.get("path"))
    files = [str(file) for file in as_list(source.get("data_files"))]
    split, local = source.get("split"), _is_file(path)
    if files and (path in _FORMATS or _is_file(files[0])):
        source.put("data_files", "path", files[0])
        source.also("path", f"{source.where}.path: the files of data_files")
        found, local = files, True
    else:
        source.put("path", "path", path)
        found = [path]
        if files:
            source.none("data_files", f"all files of {path} are read; download it to choose some")
    if source.untold("split"):
        if local:
            source.irrelevant("split", "a file has no split")
        elif split == "train":
            source.also("split", "train, the default")
        else:
            source.put("split", "split", split)
    for key in ("name", "revision"):
        if source.untold(key):
            if local:
                source.irrelevant(key, f"a file has no {key}")
            else:
                source.put(key, key, source.get(key))
    shards = source.get("shards")
    if isinstance(shards, int) and shards > 1:
        source.put("shards", "weight", round(1 / shards, 4))
    return found


def _is_file(path: str) -> bool:
    suffixes = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".gz", ".zst", ".ndjson", ".txt")
    return path.startswith(("./", "../", "/")) or path.lower().endswith(suffixes) or "*" in path


def _shape(source: Source, rows: str, key: str) -> None:
    kind = source.get("type", "pretrain" if key == "pretraining_dataset" else "chat_template")
    if isinstance(kind, dict):
        _own_columns(source, kind, rows)
    elif rows != "conversation":
        _preferences(source, str(kind), rows)
    elif str(kind).startswith(("completion", "pretrain")):
        column = source.get("field", source.get("text_column", "text"))
        templates = None if column == "text" else {"text": written(column)}
        source.columns(templates, ("type", "field", "text_column"))
    elif (columns := text_columns(str(kind))) is not None:
        source.columns(question_and_answer(columns), ("type",))
    elif str(kind).startswith(("chat_template", "sharegpt")):
        _messages(source)
    else:
        source.none(
            "type", f"not known here; say which column is what under columns of {source.where}"
        )


def _messages(source: Source) -> None:
    """Convert conversations: the column that holds them, and the spelling of a message."""
    column, tools = source.get("field_messages"), source.get("field_tools")
    templates: dict[str, str] = {}
    if column not in (None, "messages", "conversations") or tools not in (None, "tools"):
        templates = {
            "messages": written(column or "messages", as_json=True),
            "tools": optional(tools or "tools", as_json=True),
        }
        if source.get("field_system"):
            templates |= system_of({"system": source.get("field_system")})
    source.columns(templates, ("type", "field_messages", "field_tools"))
    _spelling(source)


def _spelling(source: Source) -> None:
    """Tell how messages are spelled: roles and texts under other keys, roles of other names."""
    given = source.get("message_property_mappings", {})
    mapping = given if isinstance(given, dict) else {}
    role = mapping.get("role", source.get("message_field_role", "role"))
    content = mapping.get("content", source.get("message_field_content", "content"))
    for key in ("message_property_mappings", "message_field_role", "message_field_content"):
        if not source.untold(key):
            continue
        if same_spelling(role, content) or {role, content} <= {"role", "from", "content", "value"}:
            source.also(key, "both spellings of a message are read by themselves")
        else:
            source.none(
                key, f"a message has role and content: rename {role} and {content} in the file"
            )
    thinking = source.get("field_thinking")
    if thinking is not None:
        if thinking in THINKING:
            source.also("field_thinking", "read by itself")
        else:
            source.none("field_thinking", f"rename {thinking} to thinking in the file")
    if isinstance(source.get("roles"), dict):
        said = {
            str(name): str(target)
            for target, names in source.get("roles").items()
            for name in as_list(names)
        }
        roles(source.draft, (*source.at, "roles"), said)


def _preferences(source: Source, kind: str, rows: str) -> None:
    columns = preference_columns(kind, rows)
    asked = source.get("field_messages", "messages")
    fields = {name: source.get(key, name) for key, name in _PAIR_FIELDS.items()}
    if columns is None and rows == "pair" and (asked not in ("messages", "conversations")):
        columns = {"prompt": asked, **fields}
        templates = {name: written(column, as_json=True) for name, column in columns.items()}
        source.columns(templates, ("type", "field_messages", *_PAIR_FIELDS))
    elif columns is None:
        source.columns(None, ("type", "field_messages", *_PAIR_FIELDS))
        if any(name != column for name, column in fields.items()):
            templates = {name: written(column, as_json=True) for name, column in fields.items()}
            source.columns({"messages": written(asked, as_json=True), **templates})
    else:
        source.columns(preference_templates(columns), ("type",))
    _spelling(source)


def _own_columns(source: Source, kind: dict[str, Any], rows: str) -> None:
    """Convert a type that names its columns itself; what it writes around them is left out."""
    at = (*source.at, "type")
    fields = {key: str(value) for key, value in kind.items() if value and key.startswith("field_")}
    if rows == "conversation":
        columns = {
            "instruction": fields.get("field_instruction", "instruction"),
            "input": fields.get("field_input", ""),
            "output": fields.get("field_output", "output"),
            "system": fields.get("field_system", ""),
        }
        templates = question_and_answer(columns)
    else:
        names = ("prompt", "chosen", "rejected") if rows == "pair" else ("prompt", "completion")
        columns = {name: fields.get(f"field_{name}", name) for name in names}
        if rows == "label":
            columns["label"] = fields.get("field_label", "label")
        templates = preference_templates({**columns, "system": fields.get("field_system", "")})
    if kind.get("system_prompt"):
        templates["system"] = constant(str(kind["system_prompt"]))
    source.columns(templates)
    for key, value in kind.items():
        if key.startswith("field_") or key == "system_prompt":
            if is_off(value):
                source.draft.irrelevant((*at, key), "not set")
            else:
                source.draft.also((*at, key), f"{source.where}.columns")
        elif is_off(value):
            source.draft.irrelevant((*at, key), "not set")
        else:
            source.draft.none((*at, key), f"{_HARMONY}; {key} would stand inside it")


_RULES: Final = {
    **dict.fromkeys(
        ("chat_template", "chat_template_jinja", "conversation", "input_format", "train_on_eos"),
        because("irrelevant", _HARMONY),
    ),
    **dict.fromkeys(
        ("ds_type", "preprocess_shards", "shards_idx", "template_thinking_key", "skip"),
        because("irrelevant", "the format is seen, and a source is read as a whole"),
    ),
    "trust_remote_code": because("irrelevant", "no code of a data set is ever run"),
    "roles_to_train": lambda source, key, value: (
        source.also(key, "only the assistant's messages are trained")
        if set(as_list(value)) <= {"assistant", "gpt"}
        else source.none(key, "only the assistant's messages are trained")
    ),
    "message_field_training": lambda source, key, value: (
        source.also(key, "read by itself")
        if value in ("weight", "train", "loss")
        else source.none(key, f"rename {value} to train in the file: true or false in each message")
    ),
    "message_field_training_detail": because("none", "a message has one loss weight"),
    "drop_system_message": because("none", "system messages become the developer's instructions"),
    "split_thinking": lambda source, key, value: (
        source.draft.converted((*source.at, key), "data.thinking_tags", "split")
        if not is_off(value)
        else source.irrelevant(key, "thoughts are not split off, the default here")
    ),
    "field_system": because("none", "the column system is read by itself; rename it in the file"),
    "input_transform": because("none", "no function of a data set is run"),
    **dict.fromkeys(
        ("logprobs_field", "temperature", "step_separator", "max_completion_length"),
        because("none", "of methods that are not trained here"),
    ),
}
