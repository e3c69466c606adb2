"""The state of a training in a checkpoint: optimizer, schedule, adapter and random generators.

Safetensors and JSON, keyed by parameter name.

``optimizer.safetensors`` holds the tensors ``NAME/KEY`` (``NAME/exp_avg``), ``optimizer.json`` the
rest. Tensors are whole: a sharded one is put together on all ranks, rank 0 writes it, and a reader
cuts its own share. So a checkpoint is resumed on another number of processes, sharded or not.

Hyperparameters are not stored: they are the recipe's, and the learning rate is a function of it and
of the step. torch's ``optimizer.pt`` was the alternative: a pickle, keyed by the position of a
parameter, whose stored learning rate overrules a recipe that was changed on purpose.

``random.json`` holds the state of each rank's random generators: Python, NumPy, torch, and the
rank's GPU. Nothing that training computes draws from them: gpt-oss has no dropout, and the order of
the rows has a generator of its own. They are kept so that code that does draw stays exact, at 14 KB
a rank. Rank 0 writes all of them into one file, because a rank's own disk may not be the run's. The
usual ``rng_state.pth`` was the alternative; it is a pickle, and one per rank.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.model.parallel import sharding
from gptoss_tune.weights.adapter_config import ADAPTER_WEIGHTS
from gptoss_tune.weights.safetensors_file import SafetensorsFile, TensorSpec
from gptoss_tune.weights.write import Shard, ShardWriter

TENSORS, FACTS = "optimizer.safetensors", "optimizer.json"

_SHARED = "code book"
"""First part of the name of a tensor that all parameters share: bitsandbytes' quantization maps."""
_SHARED_KEYS = ("qmap1", "qmap2")


@dataclass(frozen=True)
class _Held:
    """A tensor of an optimizer's state under the name it has in the file."""

    name: str
    tensor: Tensor

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.tensor.dtype, tuple(self.tensor.shape))


def save_state(
    folder: Path, *, model: nn.Module, optimizer: Any, scheduler: Any, writes: bool
) -> None:
    """Write the optimizer's state and the schedule's step into ``folder``.

    Every rank calls this with the same model and optimizer, as sharded tensors are put together by
    all of them.

    Args:
        folder: Exists on the rank that writes.
        model: Its parameters' names are the keys.
        optimizer: A torch or bitsandbytes optimizer, or Accelerate's wrapper of one.
        scheduler: A ``LambdaLR``.
        writes: Whether this rank writes; one does.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    states = dict(_states(model, optimizer))
    held = list(_held(states))
    if not writes:
        for entry in held:
            sharding.whole(entry.tensor)
        return
    with ShardWriter(folder, Shard(TENSORS, tuple(entry.spec for entry in held))) as file:
        for entry in held:
            file.write(entry.name, sharding.whole(entry.tensor).detach().cpu())
    facts = {
        "optimizer": _kind(optimizer),
        "parameters": {
            name: {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            for name, state in states.items()
        },
        "schedule": {"step": scheduler.last_epoch},
    }
    write_text(folder / FACTS, json.dumps(facts) + "\n")


def load_state(folder: Path, *, model: nn.Module, optimizer: Any, scheduler: Any) -> None:
    """Give an optimizer and a schedule the state that ``save_state`` wrote.

    Learning rate, betas and weight decay stay those the optimizer was made with; the learning rate
    is set to the schedule's value at the saved step.

    Raises:
        CheckpointError: The files are missing or damaged, or are of another optimizer or other
            parameters.
    """
    file = SafetensorsFile(folder / TENSORS)
    facts = _facts(folder / FACTS)
    if facts["optimizer"] != _kind(optimizer):
        raise CheckpointError(
            f"{folder / FACTS}: state of {facts['optimizer']}, the run's optimizer is "
            f"{_kind(optimizer)}; set train.optim back"
        )
    stored: dict[str, dict[str, Any]] = facts["parameters"]
    named = _trained(model, optimizer)
    if stored.keys() != named.keys():
        odd = sorted(stored.keys() ^ named.keys())
        raise CheckpointError(
            f"{folder / FACTS}: its {len(stored)} parameters are not the run's {len(named)}, "
            f"first '{odd[0]}'; the checkpoint is of another model or other adapters"
        )
    tensors: dict[str, dict[str, str]] = {name: {} for name in named}
    shared: dict[str, Tensor] = {}
    for entry in file.entries:
        owner, _, key = entry.rpartition("/")
        if owner == _SHARED:
            shared[key] = file.read(entry)
        elif owner in tensors:
            tensors[owner][key] = entry
        else:
            raise CheckpointError(f"{file.path}: '{entry}' belongs to no parameter of the run")
    bare = _bare(optimizer)
    fill = _fill_buffers if hasattr(bare, "init_state") else _replace
    fill(bare, named, tensors, stored, shared, file)
    _set_step(scheduler, int(facts["schedule"]["step"]))


def load_adapter(folder: Path, model: Any) -> None:
    """Copy the factors saved in ``folder`` into those of ``model``, all of them and no other.

    Raises:
        CheckpointError: The file is damaged, or a factor is missing, unknown or of another shape.
    """
    file = SafetensorsFile(folder / ADAPTER_WEIGHTS)
    factors = get_peft_model_state_dict(model, save_embedding_layers=False)
    odd = sorted(factors.keys() ^ file.entries.keys())
    if odd:
        raise CheckpointError(
            f"{file.path}: its {len(file.entries)} factors are not the run's {len(factors)}, first "
            f"'{odd[0]}'; the checkpoint is of another model or other adapters"
        )
    with torch.no_grad():
        for name, factor in factors.items():
            factor.copy_(_cut_like(factor, _read(file, name, factor)))


def _cut_like(like: Tensor, whole: Tensor) -> Tensor:
    """Return the part of ``whole`` that this rank holds of ``like``; all of it when not sharded."""
    if not isinstance(like, DTensor):
        return whole
    # Every rank has read the whole, so nothing is sent.
    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def _states(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    state = _bare(optimizer).state
    for name, parameter in _trained(model, optimizer).items():
        # A parameter that no step has reached yet has none.
        yield name, dict(state.get(parameter, {}))


def _held(states: dict[str, dict[str, Any]]) -> Iterator[_Held]:
    """Yield every tensor once, the widest dtypes first, so that each is aligned to its size."""
    shared: dict[str, Tensor] = {}
    found: list[_Held] = []
    for name, state in states.items():
        for key, value in state.items():
            if key in _SHARED_KEYS:
                shared[key] = value
            elif isinstance(value, Tensor):
                found.append(_Held(f"{name}/{key}", value))
    found += [_Held(f"{_SHARED}/{key}", tensor) for key, tensor in sorted(shared.items())]
    yield from sorted(found, key=lambda held: -held.tensor.dtype.itemsize)


def _trained(model: nn.Module, optimizer: Any) -> dict[str, nn.Parameter]:
    """Return the optimizer's parameters by name, in the model's order."""
    steps = {id(p) for group in _bare(optimizer).param_groups for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if id(p) in steps}
    assert len(named) == len(steps), "the optimizer holds a parameter that the model does not"
    return named


def _replace(
    optimizer: torch.optim.Optimizer,
    named: dict[str, nn.Parameter],
    tensors: dict[str, dict[str, str]],
    values: dict[str, dict[str, Any]],
    shared: dict[str, Tensor],
    file: SafetensorsFile,
) -> None:
    """Load through the optimizer's own ``load_state_dict``, which knows where a step count lies."""
    if shared:
        raise CheckpointError(f"{file.path}: holds code books, which AdamW does not have")
    numbers = {
        id(p): number
        for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    state = {}
    for name, parameter in named.items():
        entries: dict[str, Any] = dict(values[name])
        for key, entry in tensors[name].items():
            whole = file.read(entry)
            if key == "step":
                entries[key] = whole
                continue
            _refuse_shape(file, entry, whole.shape, parameter.shape)
            entries[key] = _cut_like(parameter, whole)
        if entries:
            state[numbers[id(parameter)]] = entries
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _fill_buffers(
    optimizer: Any,
    named: dict[str, nn.Parameter],
    tensors: dict[str, dict[str, str]],
    values: dict[str, dict[str, Any]],
    shared: dict[str, Tensor],
    file: SafetensorsFile,
) -> None:
    """Copy into buffers that bitsandbytes makes; its own loading leaves paged state unpaged."""
    places = {
        id(p): (group, number, place)
        for number, group in enumerate(optimizer.param_groups)
        for place, p in enumerate(group["params"])
    }
    for name, parameter in named.items():
        if not tensors[name] and not values[name]:
            continue
        group, number, place = places[id(parameter)]
        optimizer.init_state(group, parameter, number, place)
        state = optimizer.state[parameter]
        own = {k for k, v in state.items() if isinstance(v, Tensor) and k not in _SHARED_KEYS}
        if tensors[name].keys() != own:
            raise CheckpointError(
                f"{file.path}: '{name}' has {sorted(tensors[name])}, this bitsandbytes keeps "
                f"{sorted(own)}; resume with the version that wrote it"
            )
        for key, entry in tensors[name].items():
            state[key].copy_(_read(file, entry, state[key]))
        for key in _SHARED_KEYS:
            if key in state and not torch.equal(state[key].cpu(), shared[key]):
                raise CheckpointError(
                    f"{file.path}: its code book {key} is not this bitsandbytes'; resume with the "
                    "version that wrote it"
                )
        state.update(values[name])


def _read(file: SafetensorsFile, entry: str, like: Tensor) -> Tensor:
    spec = file.entries[entry].spec
    _refuse_shape(file, entry, spec.shape, like.shape)
    if spec.dtype != like.dtype:
        raise CheckpointError(f"{file.path}: '{entry}' is {spec.dtype}, expected {like.dtype}")
    return file.read(entry)


def _refuse_shape(file: SafetensorsFile, entry: str, got: Any, expected: Any) -> None:
    if tuple(got) != tuple(expected):
        raise CheckpointError(
            f"{file.path}: '{entry}' is {list(got)}, expected {list(expected)}; the checkpoint is "
            "of another base or rank"
        )


def _set_step(scheduler: Any, step: int) -> None:
    """Put a ``LambdaLR`` at ``step``, and the learning rates of its optimizer with it."""
    rates = [
        base * factor(step)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    # torch counts the call that set step 0 as well.
    scheduler.last_epoch, scheduler._step_count, scheduler._last_lr = step, step + 1, rates


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = read_object(path)
        if not isinstance(facts["parameters"], dict) or not isinstance(facts["optimizer"], str):
            raise ValueError("parameters or optimizer is of another kind")
        int(facts["schedule"]["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return facts


def _bare(optimizer: Any) -> Any:
    """Return the optimizer inside Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _kind(optimizer: Any) -> str:
    return type(_bare(optimizer)).__name__


RANDOM = "random.json"


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of this process as JSON values."""
    version, words, gauss = random.getstate()
    generator: Any = np.random.get_state()
    name, key, position, has_gauss, cached = generator
    return {
        "python": [version, _text(np.array(words, dtype=np.uint32)), gauss],
        "numpy": [name, _text(key), position, has_gauss, cached],
        "torch": _text(torch.random.get_rng_state().numpy()),
        "cuda": _text(torch.cuda.get_rng_state(device).numpy()) if device.type == "cuda" else None,
    }


def save_random_states(folder: Path, states: list[dict[str, Any]]) -> None:
    """Write the states of all ranks, in their order."""
    write_text(folder / RANDOM, json.dumps({"ranks": states}) + "\n")


def load_random_state(folder: Path, rank: int, device: torch.device) -> bool:
    """Restore the generators of ``rank``.

    Returns:
        False when the checkpoint was written by fewer ranks: the generators stay as they are, and
        no loss depends on them.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / RANDOM
    try:
        ranks = read_object(path)["ranks"]
        if rank >= len(ranks):
            return False
        state = ranks[rank]
        version, words, gauss = state["python"]
        random.setstate((version, tuple(_numbers(words, np.uint32).tolist()), gauss))
        name, key, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, _numbers(key, np.uint32), position, has_gauss, cached))
        torch.random.set_rng_state(torch.from_numpy(_numbers(state["torch"], np.uint8)))
        if device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(torch.from_numpy(_numbers(state["cuda"], np.uint8)), device)
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return True


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _numbers(text: str, dtype: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype).copy()
