"""``RUN/run.json``: the record of what was run, on what, with which versions, and how it ended.

It is written while the run goes on and read by everybody after: training continues from it, an
export asks it for the base and how the adapter was trained, ``reproduce`` for everything. A record
comes with a run or an adapter, and that may come from anyone. What is looked up in it later is
checked here once, by one table for all readers, so that a list where a mapping should be is a
message and not a traceback. Only the report reads it unchecked: its page is most wanted when a run
has gone wrong, and looks at each value by itself.

A figure that is not finite, such as a held-out loss, is null in the record, and ``not_finite`` says
where and what it was: ``{"eval_loss": "nan"}``. JSON has neither NaN nor Infinity; a record that
holds them, as Python writes them unless told not to, is read as if it were written so.

``RUN/recipe.yaml`` beside it is the resolved recipe, which is a recipe again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.regular import open_regular, refuse_link_out
from gptoss_tune.files.strict_json import (
    LARGEST_FILE,
    finite,
    parse_unchecked,
    read_object,
    refuse_other_kinds,
    to_text,
)
from gptoss_tune.run.folder import ADAPTER, MERGE_REPORT, RUN_CARD, RunFolder

if TYPE_CHECKING:
    from gptoss_tune.recipe import Recipe

_NOT_FINITE = "not_finite"
_SOURCE = {"path": str}
# What is looked up in a record that another process wrote, or another person.
_KINDS: dict[str, Any] = {
    "run_id": str,
    "status": str,
    "fingerprint": {},
    "changes": [{"step": int, "name": str}],
    "micro_batch": {"per_device_train_batch_size": int, "gradient_accumulation_steps": int},
    "base": {"name": str, "fingerprint": {"config": str, "weights": str, "content": str}},
    "data": [{"path": str, "sha256": str}],
    "environment": {"libraries": {}, "processes": int},
    "hardware": {},
    "preferences": {"first": {}, "last": {}, "eval": {}},
    "chosen_experts": {"chosen_by": str, "experts": int, "layers": {}, "share_of_load": {}},
    "best": {"metric": str, "value": float, "step": int, "figures": {}},
    "early_stopping": {"metric": str, "step": int, "reason": str},
    "safety": {"figures": [{}], "judges": [str], "not_measured": [str]},
    "reference": {"of": str, "rows": int, "tokens": int, "seconds": float},
    "recipe": {
        "model": {},
        "method": {"name": str},
        "lora": {},
        "train": {},
        "export": {"min_survival": float},
        "data": {"train": [_SOURCE], "eval": [_SOURCE]},
    },
    "verification": [{}],
    _NOT_FINITE: {},
}


def read_record(run: Path) -> dict[str, Any]:
    """Return ``RUN/run.json``, or nothing where there is none yet.

    Raises:
        CheckpointError: It is not JSON, holds something else than a record, or is a link, a pipe or
            too large.
    """
    path = RunFolder(run).record
    try:
        record = read_object(path, folder=run, take_constants=True)
    except FileNotFoundError:
        return {}
    record = without_nonfinite(in_new_names(record))
    refuse_other_kinds(path, record, _KINDS)
    return record


def without_nonfinite(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with null for what is not finite, and under ``not_finite`` what that was."""
    found: dict[str, str] = {}
    record = finite(record, found)
    if found:
        earlier = record.get(_NOT_FINITE)
        record[_NOT_FINITE] = (earlier if isinstance(earlier, dict) else {}) | found
    return record


def record_of_adapter(folder: Path) -> dict[str, Any]:
    """Return ``run.json`` beside or above an adapter, or what of it came from the Hub; or nothing.

    Raises:
        CheckpointError: It is not strict JSON, or holds something else than a record.
    """
    for run in (folder, folder.absolute().parent):
        if os.path.lexists(RunFolder(run).record):
            return read_record(run)
    card = folder / RUN_CARD
    if not card.is_file():
        return {}
    # What a push left of the record: enough for the base and for how the adapter was trained.
    found = {key: value for key, value in read_object(card).items() if key in ("base", "recipe")}
    refuse_other_kinds(card, found, _KINDS)
    return found


def read_unchecked(path: Path, run: Path) -> Any:
    """Return what a JSON file of a run holds, of whatever kind, for a reader that looks itself.

    Raises:
        OSError: It cannot be read.
        CheckpointError: It is a link out of ``run``, no regular file, or too large.
        ValueError: It is not JSON in UTF-8, or nested deeper than Python reads.
    """
    with open_regular(path, largest=LARGEST_FILE, folder=run) as file:
        size = os.fstat(file.fileno()).st_size
        return parse_unchecked(file.read(size).decode("utf-8"))


_RENAMED = {"drift": "changes", "holdings": "footprint"}
"""Facts of a record under their earlier names; a record from before has one of them at least."""


def in_new_names(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record, which may be of an earlier version, under the names of this one."""
    if not record.keys() & _RENAMED.keys():
        return record
    from gptoss_tune.recipe.renamed import entry_in_new_name, recipe_in_new_names

    found = {_RENAMED.get(key, key): value for key, value in record.items()}
    if isinstance(recipe := found.get("recipe"), dict):
        found["recipe"] = recipe_in_new_names(recipe)
    if isinstance(before := found.get("fingerprint"), dict):
        found["fingerprint"] = {entry_in_new_name(name): value for name, value in before.items()}
    if isinstance(changes := found.get("changes"), list):
        found["changes"] = [
            one | {"name": entry_in_new_name(one["name"])}
            if isinstance(one, dict) and isinstance(one.get("name"), str)
            else one
            for one in changes
        ]
    return found


def load_run_recipe(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return ``RUN/recipe.yaml`` with overrides laid over it; an earlier version's is read too.

    Raises:
        RecipeError: As ``load_recipe``.
        CheckpointError: It is a link out of the run.
    """
    from gptoss_tune.recipe import load_recipe

    refuse_link_out(RunFolder(run).recipe, run)
    return load_recipe(RunFolder(run).recipe, overrides, old_names=True)


def update_record(run: Path, **facts: Any) -> dict[str, Any]:
    """Merge ``facts`` into ``RUN/run.json`` and return the whole record.

    Args:
        run: The run's folder.
        facts: What JSON can hold; a number that is not finite becomes null, see above. A record
            begins with its ``run_id``.

    Raises:
        CheckpointError: There is no record: the folder was renamed or emptied under the run, and a
            record with a few facts in it would pass for the run's.
    """
    record = read_record(run)
    if not record and "run_id" not in facts:
        raise CheckpointError(
            f"{RunFolder(run).record}: is not there any more; the folder was renamed, moved or "
            f"emptied while something wrote into it. Move it back to {run}, then the same command "
            "continues"
        )
    told = record.get(_NOT_FINITE, {})
    record[_NOT_FINITE] = {k: v for k, v in told.items() if re.split(r"[.[]", k)[0] not in facts}
    record.update(facts, updated=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    record = without_nonfinite(record)
    if not record[_NOT_FINITE]:
        del record[_NOT_FINITE]
    write_text(RunFolder(run).record, to_text(record, indent=1) + "\n")
    return record


def note_verification(sources: list[str], command: str, verdict: dict[str, Any]) -> None:
    """Add what ``merge`` or ``verify`` found to the cards of the runs that were exported.

    Args:
        sources: What was exported: runs, their ``adapter`` folders, or adapters without a card.
        command: Which command looked.
        verdict: ``Verification.as_dict()``.
    """
    kept = {key: verdict[key] for key in ("folder", "passed", "checks")}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for source in map(Path, sources):
        run = source if RunFolder(source).record.is_file() else source.parent
        # A parent folder counts for a run's own adapter only.
        if RunFolder(run).record.is_file() and (run == source or source.name == ADAPTER):
            earlier = read_record(run).get("verification") or []
            noted = {"command": command, "time": now, **kept}
            update_record(run, verification=[*earlier, noted])


def wanted_survival(folder: Path) -> float | None:
    """Return the recipe's ``export.min_survival`` from ``run.json``; ``None`` where it has none.

    Args:
        folder: Of the adapter, as in ``record_of_adapter``.
    """
    return record_of_adapter(folder).get("recipe", {}).get("export", {}).get("min_survival")


def trained_merge_aware(folder: Path) -> bool:
    """Return whether ``run.json`` says that the rounded weights were trained.

    Args:
        folder: Of the adapter, as in ``record_of_adapter``.
    """
    recipe = record_of_adapter(folder).get("recipe", {})
    return bool(recipe.get("lora", {}).get("merge_aware", False))


# What goes into a system message comes from an allow-list: a record may be anyone's.
_OF_PROMPTS = {"reasoning_effort": "low|medium|high", "date": "[0-9]{4}-[0-9]{2}-[0-9]{2}"}


def prompts_trained_on(folder: Path) -> dict[str, str]:
    """Return ``reasoning_effort`` and ``date`` of the system messages that a record tells of.

    Args:
        folder: Of the adapter, as in ``record_of_adapter``; of a merged model, whose report has
            them from the records of what was merged.
    """
    report = folder / MERGE_REPORT
    if report.is_file():
        return _plain_prompts(read_object(report, folder=folder).get("prompts_trained_on"))
    return prompts_of(record_of_adapter(folder))


def prompts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what ``prompts_trained_on`` does, of a record.

    The effort is the one of most samples: rows may name another than the recipe.
    """
    told = _plain_prompts(record.get("recipe", {}).get("data", {}))
    efforts = record.get("efforts")
    counted = {
        name: count
        for name, count in (efforts if isinstance(efforts, dict) else {}).items()
        if re.fullmatch(_OF_PROMPTS["reasoning_effort"], str(name)) and type(count) is int
    }
    return told | {"reasoning_effort": max(counted, key=counted.__getitem__)} if counted else told


def _plain_prompts(told: Any) -> dict[str, str]:
    """Return of a record what is no text of a stranger's."""
    told = told if isinstance(told, dict) else {}
    return {
        name: told[name]
        for name, pattern in _OF_PROMPTS.items()
        if isinstance(told.get(name), str) and re.fullmatch(pattern, told[name])
    }


def refuse_other_environment(record: dict[str, Any], run: Path, environment: str | None) -> None:
    """See that who reproduces a run names the class that played its episodes, if one did.

    It is imported, so a run folder, which may be a stranger's, does not choose it.

    Args:
        record: Of the run.
        run: Its folder.
        environment: As given to the command.

    Raises:
        RecipeError: Another one is named, or none.
    """
    known = record.get("fingerprint", {}).get("environment")
    spec = known.partition(",")[0] if isinstance(known, str) else None
    if environment == spec:
        return
    if spec is None:
        raise RecipeError(
            f"--environment: got {environment!r}, and no class of a user's own played in {run}; "
            "remove it"
        )
    raise RecipeError(
        f"{run}: a class {spec!a} played its episodes, got {environment or 'none'}; look at that "
        f"module, which is imported, and add --environment {spec}"
    )
