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

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune import __version__
from gptoss_tune.distributed import gather_over_ranks
from gptoss_tune.errors import CheckpointError
from gptoss_tune.evaluate.generate import without_adapters
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.harmony.dataset.cache import cache_folder, cache_key, state_of
from gptoss_tune.model.build import engines
from gptoss_tune.model.initial_adapter import initial_adapter_folder
from gptoss_tune.model.parallel.sharding import gather_nothing, is_sharded
from gptoss_tune.recipe.schema import Reference
from gptoss_tune.run.record import update_record
from gptoss_tune.train.data.collator import BATCH_ONLY
from gptoss_tune.train.data.sampler import FILLER, DatasetWithFiller, batches_of
from gptoss_tune.train.observers.observer import StepObserver
from gptoss_tune.train.preference.answers import take
from gptoss_tune.train.preference.collator import PreferenceCollator, mismatched
from gptoss_tune.train.preference.reference_cache import (
    copied,
    keep,
    read,
    refuse_differing,
    write,
)
from gptoss_tune.train.resume.fingerprint import device_name, rows_hash
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel

    from gptoss_tune.train.context import RunContext

LAYOUT = 2
"""Number of the files' layout and of the way they are computed."""
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
        """Return what the reference is, the hashes of its values, and what they depend on."""
        made = self._made
        return {"of": made.of, "sha256": made.sha256, "computed_from": made.computed_from}

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Compare with what the checkpoint was trained against.

        Values of other rows, or of another base, are other ones: such a change is the fingerprint's
        to refuse, and what was allowed there takes effect.

        Raises:
            CheckpointError: They differ, and nothing that was allowed to change explains it.
        """
        for split, known in self._made.sha256.items():
            before, of = state["sha256"].get(split), state["computed_from"].get(split)
            now = self._made.computed_from[split]
            changed = of is None or _compared_by_name(of) != _compared_by_name(now)
            if before != known and not changed:
                raise CheckpointError(
                    f"the run was trained against other log-probabilities of the reference (of "
                    f"{split}: {str(before)[:12]} there, {known[:12]} here: another machine "
                    "computed them); copy the cached ones from where it was begun to "
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
        found[split], hashes[split] = read(key, facts, dataset)
        refuse_differing(split, key, hashes[split])
        seconds += took
        rows += len(dataset)
        tokens += _tokens(dataset)
    made = ReferencePass(of, rows, tokens, seconds, not seconds, hashes, computed_from)
    if made.cached:
        context.console.print(f"reference: {_NAMES[of]}, {rows:,} rows known from an earlier run")
    return found, made


def _compared_by_name(facts: dict[str, Any]) -> list[Any]:
    """Return what the run's fingerprint compares of ``_facts``, under names of its own."""
    adapter = facts["adapter"]
    return [
        *(facts[name] for name in ("rows", "base", "reference", "precision", "code")),
        # Its configuration stands in no fingerprint.
        adapter and adapter[1:],
    ]


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
    # Named where it is not what every head was before there was a choice.
    head = [] if model.head_precision == "bf16" else [f"head {model.head_precision}"]
    return {
        "layout": LAYOUT,
        "rows": rows_hash(dataset),
        "base": base.fingerprint()["content"],
        "reference": of,
        "adapter": adapter,
        "precision": [model.dtype, model.experts_precision, model.linear_precision, *head],
        "code": [
            str(device_name(context.device)),
            *(f"{name} {code}" for name, code in chosen.items()),
            *(f"{name} {version}" for name, version in _versions(context.device).items()),
        ],
    }


def _versions(device: torch.device) -> dict[str, str]:
    names = ["torch", "transformers", *(["triton"] if device.type == "cuda" else [])]
    return {"gptoss-tune": __version__, **{name: metadata.version(name) for name in names}}


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
        keep(context.state, key, dataset, copied(key, holders[0]))
        return 0.0
    started = time.monotonic()
    context.console.print(
        f"reference: {_NAMES[of]} reads {len(dataset):,} rows of {split} "
        f"({_tokens(dataset):,} tokens), once"
    )
    lengths = np.asarray(dataset["length"])
    with context.stop.beginning_again(f"the reference reads {split} from the start"):
        columns = {"reference": _pass(context, model, of, dataset, lengths)}
        if "kl_input_ids" in dataset.column_names:
            lengths = _kl_lengths(dataset)
            columns["kl_reference"] = _pass(context, model, of, dataset, lengths, mismatched)
        keep(context.state, key, dataset, partial(write, columns=columns, facts=facts))
    seconds = time.monotonic() - started
    rate = _tokens(dataset) / max(seconds, 1e-9)
    context.console.print(f"reference: {split} known after {seconds:.1f} s, {rate:,.0f} tok/s")
    # All ranks and the record say the same.
    return gather_over_ranks(seconds)[0]


def _pass(
    context: RunContext,
    model: PeftModel,
    of: Reference,
    dataset: Dataset,
    lengths: np.ndarray,
    rows_of: Callable[[Any], list[dict[str, Any]]] = list,
) -> list[np.ndarray]:
    """Return the log-probability of each token of each row, fp32, 0 where none counts."""
    state = context.state
    batches = batches_of(lengths)
    mine_of = batches[state.process_index :: state.num_processes]
    # All ranks meet in every pass of a model that is spread over them.
    rounds = -(-len(batches) // state.num_processes)
    mine_of += [[FILLER]] * (rounds - len(mine_of))
    filled: Any = DatasetWithFiller(dataset)
    pad: Any = model.config
    collate = PreferenceCollator(pad.pad_token_id)
    mine: dict[int, np.ndarray] = {}
    told = time.monotonic()
    training = model.training
    model.eval()
    for number, indices in enumerate(mine_of):
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
            context.console.print(f"reference: {(number + 1) / rounds:.0%}")
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


def _tokens(dataset: Dataset) -> int:
    """Return the tokens that the reference reads."""
    total = int(np.asarray(dataset["length"]).sum())
    if "kl_input_ids" in dataset.column_names:
        total += int(_kl_lengths(dataset).sum())
    return total


def _kl_lengths(dataset: Dataset) -> np.ndarray:
    """Return the tokens of each row's mismatched documents, ``[rows]``."""
    column: Any = dataset.with_format("arrow")["kl_input_ids"]
    return pc.call_function("list_value_length", [column[:]]).to_numpy()
