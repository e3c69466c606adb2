"""What a base already holds, and whether a sum of adapters on it is what anyone wants.

A merged folder says in ``merge_report.json`` which adapters are in it. Merging one of them again
doubles its change, and so does naming one twice; the result loads, answers and is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.weights import Checkpoint

REPORT = "merge_report.json"


def merged_before(base: Checkpoint) -> list[str]:
    """Return the hashes of the adapters that ``base`` was merged from, by its reports, sorted.

    Each is the sha256 of an adapter's weights; of a report that has none, of the whole adapter.
    """
    if not (base.path / REPORT).is_file():
        return []
    report = read_object(inside(base.path, REPORT, f"{base.path}: has"))
    earlier, adapters = report.get("base"), report.get("adapters")
    found = _texts(earlier.get("merged") if isinstance(earlier, dict) else None)
    for entry in adapters if isinstance(adapters, list) else ():
        if isinstance(entry, dict):
            found |= _texts([entry.get("weights") or entry.get("sha256")])
    return sorted(found)


def _texts(values: Any) -> set[str]:
    """Return the texts among what a report, which may be anyone's, has as a list of hashes."""
    return {v for v in values if isinstance(v, str)} if isinstance(values, list) else set()


def refuse_unsound_sum(base: Checkpoint, adapters: Sequence[WeightedAdapter]) -> None:
    """Refuse weights that are no factor, an adapter named twice, and one that the base holds.

    Raises:
        CheckpointError: Names the adapter and what to do.
    """
    before, seen = merged_before(base), {}
    for each in adapters:
        path, digest = each.adapter.path, each.adapter.weights_digest
        if not math.isfinite(each.weight) or each.weight == 0:
            raise CheckpointError(
                f"{path}: its weight in the sum is {each.weight:g}; expected a number other than 0"
            )
        if digest in seen:
            raise CheckpointError(
                f"{path}: is the same adapter as {seen[digest]}; name it once, with the sum of the "
                "weights as PATH=WEIGHT"
            )
        seen[digest] = path
        # A negative weight takes a change out again.
        if each.weight > 0 and (digest in before or each.adapter.digest in before):
            raise CheckpointError(
                f"{base.path}: already holds {path}, says its {REPORT}; merging it again would "
                "double the change: give the base without it with --base"
            )
