"""The agreement of the ranks: all train one recipe on the same rows and base, or none begins.

Every rank reads its own files and its own command line. On two machines one may have yesterday's
data, another base under the same path, or an override that the other lacks; the gradients are then
averaged over two different trainings, or the ranks wait for each other at different steps. So what
each computes from is compared before the model is loaded. Trusting rank 0 and sending its recipe to
the others was the alternative: it cannot send a machine the files it lacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_tune.distributed import gather_over_ranks
from gptoss_tune.errors import RecipeError
from gptoss_tune.files.digest import digest_of, sha256_of
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.train.distributed.heartbeat import named
from gptoss_tune.train.resume.changes import ROWS, shortened
from gptoss_tune.train.resume.fingerprint import ACTS_THROUGH

_OWN = {"device", "train.output_dir", "train.resume"}
"""What may differ: the kind of GPU, and paths that rank 0 alone uses."""
_ON_FIRST_RANK = "tracking."
_HOW_OFTEN = {"train.per_device_train_batch_size", "train.gradient_accumulation_steps"}
_READ = (
    "evaluation.prompts",
    "evaluation.drift.references",
    "evaluation.drift.probes",
    "evaluation.safety.requests",
    "evaluation.safety.policy",
)
_ABSENT = "(nothing of that name)"


def refuse_disagreement(fingerprint: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Stop all ranks where one was given something else; every rank has to call it.

    Args:
        fingerprint: Of the run, as this rank has computed it.
        settings: Of the resolved recipe, by dotted name.

    Raises:
        RecipeError: On all ranks alike; names what differs, and on which ranks.
    """
    mine = compared(fingerprint, settings)
    text = json.dumps(mine, sort_keys=True)
    if len(set(gather_over_ranks(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    lines = disagreements(gather_over_ranks(mine))
    if lines:
        raise RecipeError(
            "the processes of this run were not started with the same; no weight was read:\n  "
            + "\n  ".join(lines)
            + "\ngive every process the same recipe and overrides, the same files and the same "
            "versions"
        )


def disagreements(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each entry that is not the same on all ranks, in their order.

    The settings of the data count only where the rows they gave are not the same.
    """
    names = sorted({name for one in ranks for name in one})
    differing = [n for n in names if any(one.get(n) != ranks[0].get(n) for one in ranks)]
    if not set(ROWS) & set(differing):
        differing = [name for name in differing if not name.startswith("data.")]
    return [f"{name}: {_by_rank([one.get(name, _ABSENT) for one in ranks])}" for name in differing]


def compared(fingerprint: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has to be the same on all ranks; arguments as of ``refuse_disagreement``."""
    left_out = (ACTS_THROUGH.keys() - _HOW_OFTEN) | _OWN
    found = {
        name: value
        for name, value in {**settings, **fingerprint}.items()
        if name not in left_out and not name.startswith(_ON_FIRST_RANK)
    }
    for name in _READ:
        paths = found.get(name) or ()
        found[name] = [_read(path) for path in ([paths] if isinstance(paths, str) else paths)]
    return found


def _read(path: str) -> str:
    """Return what the files of a path hold, wherever they lie here; a name on the Hub as it is."""
    files = find_files(path)
    return path if files is None else f"sha256 {digest_of([sha256_of(file) for file, _ in files])}"


def _by_rank(values: Sequence[Any]) -> str:
    holders: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        holders.setdefault(json.dumps(value, sort_keys=True), []).append(rank)
    shown = [(shortened(json.loads(text)), ranks) for text, ranks in holders.items()]
    return ", ".join(f"{text} on {named(ranks)}" for text, ranks in shown)
