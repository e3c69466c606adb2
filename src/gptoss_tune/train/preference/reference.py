"""The reference's log-probabilities: one pass over the data by the same model, kept for good.

The reference is the base (the model with its adapters left out) or the adapter that training starts
from (the model as it was built). No second model and no second adapter is held, and no step of any
epoch computes it again: the log-probability of each counted token is written beside the rendered
data, under the hashes of the rows, the base, the adapter and the code that computed it. What is
found there is used only if its files are whole and it says that it belongs to these; a run's
checkpoints remember the values, so a continuation never goes on with others.

Each rank computes its share; every machine keeps its own copy, and all have the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.distributed import gather_over_ranks, rank
from gptoss_tune.errors import CheckpointError
from gptoss_tune.evaluate.generate import without_adapters
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.harmony.dataset.cache import built_once, cache_folder, cache_key, state_of
from gptoss_tune.model.build import engines
from gptoss_tune.model.initial_adapter import initial_adapter_folder
from gptoss_tune.model.sharding import gather_nothing, is_sharded
from gptoss_tune.recipe.schema import Reference
from gptoss_tune.run.record import update_record
from gptoss_tune.train.data.collator import BATCH_ONLY
from gptoss_tune.train.data.sampler import FILLER, DatasetWithFiller, MicroBatchSampler
from gptoss_tune.train.observers.observer import StepObserver
from gptoss_tune.train.preference.answers import take
from gptoss_tune.train.preference.collator import PreferenceCollator, mismatched
from gptoss_tune.train.resume.fingerprint import rows_hash
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel

    from gptoss_tune.train.context import RunContext

LAYOUT = 1
"""Number of the files' layout and of the way they are computed."""
_FACTS, _VALUES = "reference.json", "reference.arrow"
_ROWS_A_BATCH = 256
_SAY_EVERY_S = 30.0


@dataclass(frozen=True)
class ReferencePass:
    """What a run's reference is, and what it took to know its log-probabilities.

    Attributes:
        of: ``base`` or ``init_adapter``.
        rows: Rows of both splits.
        tokens: Their tokens, mismatched documents included.
        seconds: That computing took; 0 where all was known.
        cached: Whether all was known.
        sha256: Of the values of each split.
        computed_from: Of each split, all that its values depend on.
    """

    of: Reference
    rows: int
    tokens: int
    seconds: float
    cached: bool
    sha256: dict[str, str]
    computed_from: dict[str, dict[str, Any]]

    def facts(self) -> dict[str, Any]:
        """Return what the run's record says."""
        return {
            "of": self.of,
            "rows": self.rows,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "cached": self.cached,
        }


class ReferenceObserver(StepObserver):
    """Keeps the reference of a run in its checkpoints, and refuses to go on with another."""

    file = "reference.json"
    kept = "reference"

    def __init__(self, run: Path, made: ReferencePass) -> None:
        """Watch over ``made``, the reference of the run in the folder ``run``."""
        self._run, self._made = run, made

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the reference into the run's record."""
        if state.is_world_process_zero:
            update_record(self._run, reference=self._made.facts())

    def state_dict(self) -> dict[str, Any]:
        """Return what the reference is, and the hashes of its values."""
        made = self._made
        return {"of": made.of, "sha256": made.sha256, "computed_from": made.computed_from}

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Compare with what the checkpoint was trained against.

        Raises:
            CheckpointError: The values differ, and all that they depend on does not.
        """
        for split, known in self._made.sha256.items():
            before = state["sha256"].get(split)
            # Other rows, another base or engine: allowed by its name, or refused before this.
            same = state["computed_from"].get(split) == self._made.computed_from[split]
            if same and before != known:
                raise CheckpointError(
                    f"the run was trained against other log-probabilities of the reference (of "
                    f"{split}: {str(before)[:12]} there, {known[:12]} here: another GPU or other "
                    "libraries computed them); copy the cached ones from where it was begun to "
                    f"{cache_folder()}, or begin a new run"
                )


def with_reference(
    context: RunContext, model: PeftModel, of: Reference, datasets: dict[str, Dataset]
) -> tuple[dict[str, Dataset], ReferencePass]:
    """Return the rows with the reference's log-probabilities as columns; every rank calls it.

    Args:
        context: Of the run.
        model: As built: with fresh adapters, or with those of ``lora.init_from``.
        of: Which reference.
        datasets: Rows by the name of their split.

    Raises:
        CheckpointError: What is cached is damaged, belongs to other rows or another reference, or
            is not the same on all machines.
        MachineError: The cache cannot be written.
    """
    found: dict[str, Dataset] = {}
    hashes: dict[str, str] = {}
    computed_from: dict[str, dict[str, Any]] = {}
    rows = tokens = 0
    seconds = 0.0
    for split, dataset in datasets.items():
        facts = computed_from[split] = _facts(context, of, dataset)
        key = cache_key(["reference", facts])
        took = _compute_once(context, model, of, dataset, split, key, facts)
        found[split], hashes[split] = _read(key, facts, dataset)
        _refuse_differing(split, key, hashes[split])
        seconds += took
        rows += len(dataset)
        tokens += _tokens(dataset)
    made = ReferencePass(of, rows, tokens, seconds, not seconds, hashes, computed_from)
    if made.cached:
        context.console.print(f"reference: {_NAMES[of]}, {rows:,} rows known from an earlier run")
    return found, made


_NAMES = {"base": "the base", "init_adapter": "the adapter that training starts from"}


def _facts(context: RunContext, of: Reference, dataset: Dataset) -> dict[str, Any]:
    """Return everything that the values depend on, as JSON values."""
    recipe, base = context.recipe, context.base
    model = recipe.model
    chosen = engines(model, base, context.device, deterministic=recipe.train.deterministic)
    adapter = None
    if of == "init_adapter":
        folder = initial_adapter_folder(Path(str(recipe.lora.init_from)))
        adapter = [sha256_of(folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
        adapter.append(f"merge_aware {recipe.lora.merge_aware}")
    return {
        "layout": LAYOUT,
        "rows": rows_hash(dataset),
        "base": base.fingerprint()["content"],
        "reference": of,
        "adapter": adapter,
        "precision": [model.dtype, model.experts_precision, model.linear_precision],
        "code": [context.device.type, *(f"{name} {code}" for name, code in chosen.items())],
    }


def _compute_once(
    context: RunContext,
    model: PeftModel,
    of: Reference,
    dataset: Dataset,
    split: str,
    key: str,
    facts: dict[str, Any],
) -> float:
    """Fill the cache where a machine lacks it; return the seconds that computing took, 0 for none.

    What another machine of the run has is copied from there: values that are computed again may
    have other bits.
    """
    states = gather_over_ranks((state_of(key), str(cache_folder() / key)))
    damaged = sorted({place for state, place in states if state == "damaged"})
    if damaged:
        raise CheckpointError(
            f"{', '.join(damaged)}: the reference's log-probabilities are damaged; remove the "
            "folder, and they are computed again"
        )
    holders = [rank for rank, (state, _) in enumerate(states) if state == "whole"]
    if len(holders) == len(states):
        return 0.0
    if holders:
        _keep(context, key, _copied(key, holders[0]))
        return 0.0
    started = time.monotonic()
    context.console.print(
        f"reference: {_NAMES[of]} reads {len(dataset):,} rows of {split} "
        f"({_tokens(dataset):,} tokens), once"
    )
    with context.stop.beginning_again(f"the reference reads {split} from the start"):
        columns = {"reference": _pass(context, model, of, dataset)}
        if "kl_input_ids" in dataset.column_names:
            columns["kl_reference"] = _pass(context, model, of, dataset, mismatched)
        _keep(context, key, partial(_write, columns=columns, facts=facts))
    seconds = time.monotonic() - started
    rate = _tokens(dataset) / max(seconds, 1e-9)
    context.console.print(f"reference: {split} known after {seconds:.1f} s, {rate:,.0f} tok/s")
    # All ranks and the record say the same.
    return gather_over_ranks(seconds)[0]


def _keep(context: RunContext, key: str, build: Callable[[Path], None]) -> None:
    """Let one process of each machine write the cache, the others after it.

    Raises:
        MachineError: It cannot be written.
    """
    with context.state.local_main_process_first():
        built_once(key, build, what="log-probabilities of the reference")


def _copied(key: str, holder: int) -> Callable[[Path], None]:
    """Return what writes the files that rank ``holder`` has; every rank has to call it."""
    files: list[dict[str, bytes]] = [{}]
    if rank() == holder:
        folder = cache_folder() / key
        files[0] = {name: (folder / name).read_bytes() for name in (_FACTS, _VALUES)}
    broadcast_object_list(files, from_process=holder)

    def build(folder: Path) -> None:
        for name, content in files[0].items():
            (folder / name).write_bytes(content)

    return build


def _pass(
    context: RunContext,
    model: PeftModel,
    of: Reference,
    dataset: Dataset,
    rows_of: Callable[[Any], list[dict[str, Any]]] = list,
) -> list[np.ndarray]:
    """Return the log-probability of each token of each row, fp32, 0 where none counts."""
    state, recipe = context.state, context.recipe
    sampler = MicroBatchSampler(
        range(len(dataset)),
        recipe.train.per_device_train_batch_size,
        ranks=state.num_processes,
        rank=state.process_index,
    )
    filled: Any = DatasetWithFiller(dataset)
    pad: Any = model.config
    collate = PreferenceCollator(pad.pad_token_id)
    mine: dict[int, np.ndarray] = {}
    told = time.monotonic()
    training = model.training
    model.eval()
    for number, indices in enumerate(sampler):
        rows = rows_of([filled[index] for index in indices])
        logps = -_token_losses(context, model, of, collate(rows)).cpu().numpy()
        for index, row, found in zip(indices, rows, logps, strict=True):
            if index != FILLER:
                # Position s predicts token s + 1; nothing predicts the first.
                length = len(row["input_ids"])
                mine[index] = np.concatenate((np.zeros(1, np.float32), found[: length - 1]))
        context.watch.note_progress()
        if time.monotonic() - told > _SAY_EVERY_S:
            told = time.monotonic()
            context.console.print(f"reference: {(number + 1) / len(sampler):.0%}")
    model.train(training)
    if is_sharded(model):
        gather_nothing(model)
    every: dict[int, np.ndarray] = {}
    for share in gather_over_ranks(mine):
        every |= share
    return [every[index] for index in range(len(dataset))]


@torch.no_grad()
def _token_losses(
    context: RunContext, model: PeftModel, of: Reference, batch: dict[str, Any]
) -> torch.Tensor:
    device = context.device
    forward, _ = take(batch)
    forward = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in forward.items()
        if name not in BATCH_ONLY
    }
    mixed = context.recipe.model.dtype == "bfloat16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
        if of == "init_adapter":
            return model(**forward, use_cache=False).token_losses
        with without_adapters(model):
            return model(**forward, use_cache=False).token_losses


def _write(folder: Path, columns: dict[str, list[np.ndarray]], facts: dict[str, Any]) -> None:
    schema = pa.schema({name: pa.list_(pa.float32()) for name in columns})
    rows = len(columns["reference"])
    with (
        pa.OSFile(str(folder / _VALUES), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for first in range(0, rows, _ROWS_A_BATCH):
            part = {
                name: pa.array(values[first : first + _ROWS_A_BATCH], pa.list_(pa.float32()))
                for name, values in columns.items()
            }
            writer.write_batch(pa.RecordBatch.from_pydict(part, schema=schema))
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _refuse_differing(split: str, key: str, sha256: str) -> None:
    """Refuse values that are not those of all ranks; every rank has to ask.

    Raises:
        CheckpointError: They differ.
    """
    found = gather_over_ranks(sha256)
    if len(set(found)) > 1:
        raise CheckpointError(
            f"the machines of this run have cached different log-probabilities of the reference "
            f"for {split} ({', '.join(f'rank {n}: {one[:12]}' for n, one in enumerate(found))}); "
            f"remove {cache_folder() / key} on all machines but one, from which it is copied"
        )


def _read(key: str, facts: dict[str, Any], dataset: Dataset) -> tuple[Dataset, str]:
    """Return the rows with the cached columns, and the hash of their values.

    Raises:
        CheckpointError: The folder is of something else.
    """
    from datasets import Dataset, concatenate_datasets

    folder = cache_folder() / key
    said = read_object(folder / _FACTS)
    if said != facts:
        differs = [name for name in facts if said.get(name) != facts[name]]
        raise CheckpointError(
            f"{folder}: these log-probabilities of a reference belong to something else (they "
            f"differ in {', '.join(differs)}); remove the folder, and they are computed again"
        )
    values: Any = Dataset.from_file(str(folder / _VALUES))
    joined: Any = concatenate_datasets([dataset, values], axis=1)
    return joined, sha256_of(folder / _VALUES)


def _tokens(dataset: Dataset) -> int:
    """Return the tokens that the reference reads."""
    total = int(np.asarray(dataset["length"]).sum())
    if "kl_input_ids" in dataset.column_names:
        column: Any = dataset.with_format("arrow")["kl_input_ids"]
        total += pc.sum(pc.list_value_length(column[:])).as_py()
    return total
