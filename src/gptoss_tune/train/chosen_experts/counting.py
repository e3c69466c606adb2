"""One pass of the base over the training data, whose counts are kept beside the rendered data.

The base runs alone, without adapters and gradients, through the code that will train, over the rows
as they are rendered and packed for the run. Its counts are kept under the hashes of the rows, the
base and that code, and not of the share that is asked for: another share costs no pass. What is
found there is used only if it is whole and says that it belongs to these; else it is counted anew.

The base is loaded for the pass and again for the training, because FSDP2 spreads a model together
with its adapters, which are not known before.

L layers, E experts.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gptoss_tune import __version__
from gptoss_tune.distributed import gather_over_ranks, sum_over_ranks
from gptoss_tune.errors import CheckpointError, DataError, GptossTuneError
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.harmony.dataset.cache import built_once, cache_folder, cache_key, state_of
from gptoss_tune.model.build import build_base, engines
from gptoss_tune.model.parallel.sharding import Share
from gptoss_tune.train.chosen_experts.load import WeightedLoad
from gptoss_tune.train.data.collator import BATCH_ONLY, Collator
from gptoss_tune.train.data.sampler import FILLER, DatasetWithFiller, EpochSampler, batches_of
from gptoss_tune.train.preference.reference_cache import is_private
from gptoss_tune.train.resume.fingerprint import device_name, rows_hash

if TYPE_CHECKING:
    from datasets import Dataset

    from gptoss_tune.train.context import RunContext

LAYOUT = 1
"""Number of the file's layout and of the way it is computed."""
_FILE = "expert_load.json"
_SAY_EVERY_S = 30.0


@dataclass(frozen=True)
class Counted:
    """What one pass of the base found.

    Attributes:
        counts: ``[L][E]``, loss-weighted tokens in units.
        unit: The weight of one count.
        rows: That were read.
        tokens: Their tokens.
        seconds: That counting took; 0 where it was known.
        cached: Whether it was known.
    """

    counts: list[list[int]]
    unit: float
    rows: int
    tokens: int
    seconds: float
    cached: bool


def first_rows(dataset: Dataset, most: int | None, seed: int) -> Dataset:
    """Return the rows that are counted: all, or the first of the first epoch.

    Args:
        dataset: Of the run.
        most: Tokens that are read at most; one row is read in any case. ``None``: all.
        seed: Of the epoch's order.
    """
    lengths = np.asarray(dataset["length"])
    if most is None or int(lengths.sum()) <= most:
        return dataset
    phases = np.array(dataset["phase"]) if "phase" in dataset.column_names else None
    order = EpochSampler(len(dataset), seed=seed, phases=phases).indices(0)
    fitting = int((np.cumsum(lengths[order]) <= most).sum())
    return dataset.select(sorted(order[: max(1, fitting)].tolist()))


def count(context: RunContext, dataset: Dataset, why: str) -> Counted:
    """Return the counts of ``dataset``, known or counted now; every rank has to call it.

    Args:
        context: Of the run.
        dataset: The rows to read.
        why: What they are counted for, as the end of a sentence.

    Raises:
        CheckpointError: The machines of the run know different counts.
        DataError: No token of the rows is trained on.
        MachineError: The cache cannot be written.
    """
    facts = _facts(context, dataset)
    key = cache_key(["expert load", facts])
    mine, fault = _read(key, facts)
    known = gather_over_ranks((mine, fault))
    for fault in dict.fromkeys(fault for _, fault in known if fault is not None):
        context.console.print(f"experts: {fault}; they are counted again", soft_wrap=True)
    whole = [one for one, _ in known if one is not None]
    if any(one != whole[0] for one in whole):
        raise CheckpointError(
            "the machines of this run have cached different loads of the experts; remove "
            f"{cache_folder() / key} on all machines but one, from which it is copied"
        )
    started = time.monotonic()
    found = whole[0] if whole else _counted(context, dataset, why)
    if len(whole) < len(known):
        _keep(context, key, dataset, {"facts": facts, **found})
    seconds = 0.0 if whole else gather_over_ranks(time.monotonic() - started)[0]
    tokens = int(np.asarray(dataset["length"]).sum())
    return Counted(**found, rows=len(dataset), tokens=tokens, seconds=seconds, cached=bool(whole))


def _facts(context: RunContext, dataset: Dataset) -> dict[str, Any]:
    """Return everything that the counts depend on, as JSON values."""
    recipe, base = context.recipe, context.base
    model, device = recipe.model, context.device
    chosen = engines(model, base, device, deterministic=recipe.train.deterministic)
    names = ["torch", "transformers", *(["triton"] if device.type == "cuda" else [])]
    return {
        "layout": LAYOUT,
        "rows": rows_hash(dataset),
        "base": base.fingerprint()["content"],
        "precision": [model.dtype, model.experts_precision, model.linear_precision],
        "code": [
            str(device_name(device)),
            *(f"{name} {code}" for name, code in chosen.items()),
            f"gptoss-tune {__version__}",
            *(f"{name} {metadata.version(name)}" for name in names),
        ],
    }


def _read(key: str, facts: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """Return what is cached, and what is wrong with it."""
    folder, state = cache_folder() / key, state_of(key)
    if state == "missing":
        return None, None
    if state == "damaged":
        return None, f"{folder}: the cached loads are damaged"
    try:
        found = read_object(folder / _FILE)
    except (OSError, GptossTuneError) as error:
        return None, f"{folder}: the cached loads cannot be read ({error})"
    if found.pop("facts", None) != facts or found.keys() != {"counts", "unit"}:
        return None, f"{folder}: the cached loads belong to something else"
    return found, None


def _keep(context: RunContext, key: str, dataset: Dataset, found: dict[str, Any]) -> None:
    """Let one process of each machine write what was counted, in the place of what is no good."""

    def build(folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(found), encoding="utf-8")

    with context.state.local_main_process_first():
        if _read(key, found["facts"])[1] is not None:
            shutil.rmtree(cache_folder() / key, ignore_errors=True)
        built_once(key, build, private=is_private(dataset), what="loads of the experts")


def _counted(context: RunContext, dataset: Dataset, why: str) -> dict[str, Any]:
    """Let the base read the rows, each rank its share of the batches."""
    lengths, recipe, state = np.asarray(dataset["length"]), context.recipe, context.state
    tokens = int(lengths.sum())
    context.console.print(
        f"experts: the base reads {len(dataset):,} rows ({tokens:,} tokens), once, {why}"
    )
    started = time.monotonic()
    with context.stop.beginning_again("the base reads the rows from the start"):
        sharded = context.parallelism == "fsdp2"
        share = Share(state.process_index, state.num_processes) if sharded else None
        model = build_base(
            recipe.model,
            context.base,
            context.device,
            share,
            deterministic=recipe.train.deterministic,
            expert_tile=context.expert_tile,
        )
        load = WeightedLoad(model, _largest_weight(dataset))
        _pass(context, model, load, dataset, lengths)
        load.close()
        counts = sum_over_ranks(load.counts).tolist()
    del model
    gc.collect()  # its hooks hold it in circles, and the training needs its memory
    if context.device.type == "cuda":
        torch.cuda.empty_cache()
    seconds = time.monotonic() - started
    rate = tokens / max(seconds, 1e-9)
    context.console.print(f"experts: counted after {seconds:.1f} s, {rate:,.0f} tok/s")
    return {"counts": counts, "unit": load.unit}


def _largest_weight(dataset: Dataset) -> float:
    """Return the largest loss weight.

    Raises:
        DataError: There is none above 0.
    """
    columns = dataset.select_columns(["loss_weights"]).with_format("arrow")
    tables: Any = columns.iter(batch_size=1024)
    largest = max(
        float(np.max(table["loss_weights"].combine_chunks().flatten().to_numpy(), initial=0.0))
        for table in tables
    )
    if largest <= 0:
        raise DataError(
            "lora.experts: no token of the rows that are read to choose experts is trained on; "
            "raise lora.experts.tokens"
        )
    return largest


@torch.no_grad()
def _pass(
    context: RunContext, model: Any, load: WeightedLoad, dataset: Dataset, lengths: np.ndarray
) -> None:
    state, recipe, device = context.state, context.recipe, context.device
    # Rows that share a batch are the same ones on any number of ranks: a router's last bit may
    # depend on it.
    batches = batches_of(lengths)
    mine = batches[state.process_index :: state.num_processes]
    rounds = -(-len(batches) // state.num_processes)
    mine += [[FILLER]] * (rounds - len(mine))  # all ranks meet in every pass of a spread model
    rows: Any = DatasetWithFiller(dataset)
    packed = recipe.data.packing or recipe.method.name != "sft"
    collate = Collator(model.config.pad_token_id, packed=packed)
    nowhere = torch.zeros(1, dtype=torch.int64, device=device)  # no logits are asked for
    told = time.monotonic()
    for number, indices in enumerate(mine):
        batch = collate([rows[index] for index in indices])
        forward = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
            if name not in BATCH_ONLY
        }
        load.of_tokens(forward["loss_weights"].flatten())
        mixed = recipe.model.dtype == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            model(**forward, states_at=nowhere, use_cache=False)
        context.watch.note_progress()
        if time.monotonic() - told > _SAY_EVERY_S:
            told = time.monotonic()
            context.console.print(f"experts: {(number + 1) / rounds:.0%}")
