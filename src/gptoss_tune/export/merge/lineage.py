"""What a base already holds, and whether a sum of adapters on it is what anyone wants.

A merged folder says in ``merge_report.json`` which adapters are in it, and with which weight in
all. Merging one of them again doubles its change, taking one out twice turns it round, and naming
one twice does either; the result loads, answers and is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.run.folder import MERGE_REPORT
from gptoss_tune.weights import Checkpoint

REPORT = MERGE_REPORT
_ROUNDING = 1e-9  # what a sum of weights may be off by


def merged_before(base: Checkpoint) -> dict[str, float | None]:
    """Return the adapters that ``base`` was merged from, by its reports: hash and summed weight.

    Each hash is the sha256 of an adapter's weights; of a report that has none, of the whole
    adapter. A sum of 0 is of an adapter that was taken out again; it is None where a report lists
    the hashes of earlier merges without their weights.
    """
    if not (base.path / REPORT).is_file():
        return {}
    report = read_object(inside(base.path, REPORT, f"{base.path}: has"))
    earlier, adapters = report.get("base"), report.get("adapters")
    earlier = earlier if isinstance(earlier, dict) else {}
    listed, weights = earlier.get("merged"), earlier.get("merged_weights")
    weights = weights if isinstance(weights, dict) else {}
    found = {
        digest: _number(weights.get(digest))
        for digest in (listed if isinstance(listed, list) else ())
        if isinstance(digest, str)
    }
    for entry in adapters if isinstance(adapters, list) else ():
        digest = entry.get("weights") or entry.get("sha256") if isinstance(entry, dict) else None
        if isinstance(digest, str):
            before, weight = found.get(digest, 0.0), _number(entry.get("weight"))
            found[digest] = None if before is None or weight is None else before + weight
    return found


def lineage_report(base: Checkpoint) -> dict[str, Any]:
    """Return what the report of a merge into ``base`` says of the merges before it."""
    before = merged_before(base)
    return {"merged": sorted(before), **({"merged_weights": before} if before else {})}


def _number(value: Any) -> float | None:
    """Return a weight of a report, which may be anyone's; None for what is none."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def refuse_unsound_sum(base: Checkpoint, adapters: Sequence[WeightedAdapter]) -> None:
    """Refuse weights that are no factor, an adapter named twice, and one that the base holds.

    A negative weight takes a change out again, as far as the base's reports say that it is there.

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
        for known in {digest, each.adapter.digest} & set(before):
            _refuse_again(base, each, before[known])


def _refuse_again(base: Checkpoint, each: WeightedAdapter, held: float | None) -> None:
    """Refuse to add what the base holds with the weight ``held``, or to take out more of it.

    Raises:
        CheckpointError: Names the adapter and what to do.
    """
    path = each.adapter.path
    if each.weight > 0 and (held is None or held > _ROUNDING):
        raise CheckpointError(
            f"{base.path}: already holds {path}, says its {REPORT}; merging it again would "
            "double the change: give the base without it with --base"
        )
    if each.weight < 0 and held is not None and held + each.weight < -_ROUNDING:
        raise CheckpointError(
            f"{base.path}: holds {path} with the weight {held:g}, says its {REPORT}; "
            f"{each.weight:g} would take out more than is there: leave it out, take out less, or "
            "give another base with --base"
        )
