"""A LoRA adapter on disk: checked against its base, read one target at a time.

Every tensor of the file must be wanted by the configuration and every wanted tensor must be there,
with the right shape and without NaN. Merging code can then trust what it reads.

The layout of expert factors is PEFT's: A ``[E*r, in]`` has its rows expert by expert, B
``[out, r*E]`` has its columns rank by rank. Reading B as expert-major gives a model that runs and
is wrong. An adapter on chosen experts has factors of those alone, in the same layout, and says
which they are (``chosen_experts`` in its configuration); they are read among zeros for the others.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.files.paths import inside
from gptoss_tune.run.record import record_of_adapter
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SWAPPING_PEFT,
    read_adapter_config,
    saved_by_swapping_peft,
)
from gptoss_tune.weights.adapter_targets import PREFIX, Target, targets_of
from gptoss_tune.weights.hashes import refuse_damaged
from gptoss_tune.weights.layouts.names import ONE_BY_ONE, without_wrappers
from gptoss_tune.weights.names import layer_of
from gptoss_tune.weights.safetensors_file import SafetensorsFile
from gptoss_tune.weights.sources import adapter_folder

_NAMED_FACTOR = re.compile(r"(.*\.lora_[AB])\.[\w-]+(\.weight)")
"""A factor with the adapter's name in its own, as in a state dict: ``lora_A.default.weight``."""


@dataclass(frozen=True)
class LowRank:
    """The change ``scaling * B @ A`` of one weight, factors in fp32.

    Attributes:
        A: ``[E, r, in]``; E is 1 for a linear layer.
        B: ``[E, out, r]``.
        scaling: alpha / rank, times the adapter's weight.
        chosen: Experts that are changed at all, ascending; ``None``: every one.
    """

    A: Tensor
    B: Tensor
    scaling: float
    chosen: tuple[int, ...] | None = None

    def to(self, device: torch.device) -> LowRank:
        """Return the same change with its factors on ``device``."""
        return LowRank(self.A.to(device), self.B.to(device), self.scaling, self.chosen)

    def apply(self, inputs: Tensor, expert: int = 0) -> Tensor:
        """Return ``scaling * (x A^T) B^T`` for ``inputs [..., in]``, without forming the change."""
        return (inputs @ self.A[expert].T) @ self.B[expert].T * self.scaling


class Adapter:
    """A checked PEFT adapter for one base.

    Attributes:
        path: Its folder.
        config: ``adapter_config.json``.
        targets: What it changes, by module.
        renamed: Whether the file has other names for the factors than PEFT saves.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        """Open the adapter in the folder ``path`` for ``base``; see ``open_adapter``."""
        self.path = path
        self.config = read_adapter_config(path)
        refuse_damaged(path, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
        where = str(path / ADAPTER_CONFIG)
        self.targets = targets_of(self.config, base, where)
        self.file = SafetensorsFile(inside(path, ADAPTER_WEIGHTS, f"{path}: has"))
        self.renamed = _pefts_names(self.file)
        self._check_names(base)
        self.swapped = self._check_shapes()
        self._check_finite()

    def read(self, module: str, weight: float = 1.0) -> LowRank:
        """Return the factors of a target, repaired when the file has them swapped."""
        target = self.targets[module]
        a, b = (self.file.read(name).float() for name in self._names(target))
        held = target.held
        if self.swapped and target.experts:
            # As saved: A [E*r, out], B [in, r*E]; their roles are exchanged.
            stacked_b = a.unflatten(0, (held, target.rank)).transpose(1, 2)
            stacked_a = b.unflatten(1, (target.rank, held)).permute(2, 1, 0)
        else:
            stacked_a = a.unflatten(0, (held, target.rank))
            stacked_b = b.unflatten(1, (target.rank, held)).permute(2, 0, 1)
        stacked_a, stacked_b = (_placed(f.contiguous(), target) for f in (stacked_a, stacked_b))
        return LowRank(stacked_a, stacked_b, target.scaling * weight, target.chosen)

    @property
    def choice(self) -> dict[int, tuple[int, ...]] | None:
        """The experts that have factors, by layer; ``None``: all."""
        layers = {layer_of(t.module): t.chosen for t in self.targets.values()}
        return {n: c for n, c in layers.items() if n is not None and c is not None} or None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights' file, with the configuration's."""
        digest = hashlib.sha256((self.path / ADAPTER_CONFIG).read_bytes())
        with self.file.path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights' file alone: equal for copies whose configuration was edited."""
        return sha256_of(self.file.path)

    @staticmethod
    def _names(target: Target) -> tuple[str, str]:
        return f"{target.key}.lora_A.weight", f"{target.key}.lora_B.weight"

    def _check_names(self, base: Checkpoint) -> None:
        """Refuse a file that lacks a wanted factor or holds one that nothing reads.

        PEFT stores a copy of a targeted ``lm_head``; it is allowed while it is the base's own.
        """
        wanted = {name for target in self.targets.values() for name in self._names(target)}
        missing = sorted(wanted - set(self.file.entries))
        unread = sorted(
            name
            for name in set(self.file.entries) - wanted
            if not self._is_copy_of_base(name, base)
        )
        one_by_one = [name for name in unread if ONE_BY_ONE.search(name)]
        if one_by_one:
            raise CheckpointError(
                f"{self.file.path}: has factors of single experts, first '{one_by_one[0]}', as "
                "Unsloth's 4-bit layout trains them; expected one pair for a whole stack "
                "(target_parameters), train on the release's layout or merge where it was trained"
            )
        if missing:
            experts = sum(".mlp.experts." in name for name in missing)
            raise CheckpointError(
                f"{self.file.path}: {len(missing)} of {len(wanted)} factors that "
                f"{ADAPTER_CONFIG} promises are missing ({experts} of experts), first "
                f"'{missing[0]}'; the adapter was saved incompletely, save it again"
            )
        if unread:
            raise CheckpointError(
                f"{self.file.path}: {len(unread)} tensors are targeted by nothing in "
                f"{ADAPTER_CONFIG} and would be dropped, first '{unread[0]}'; the two files are "
                "of different adapters, or the adapter is of another base"
            )

    def _check_finite(self) -> None:
        """Refuse NaN and infinity, reading one factor at a time."""
        for target in self.targets.values():
            for name in self._names(target):
                if not torch.isfinite(self.file.read(name)).all():
                    raise CheckpointError(
                        f"{self.file.path}: '{name}' holds NaN or infinity; the training "
                        "diverged, export an earlier checkpoint"
                    )

    def _is_copy_of_base(self, name: str, base: Checkpoint) -> bool:
        module = name.removeprefix("base_model.model.").removesuffix(".base_layer.weight")
        target = self.targets.get(module)
        if target is None or target.experts or name != f"{target.key}.base_layer.weight":
            return False
        return torch.equal(self.file.read(name), base.read(f"{module}.weight"))

    def _check_shapes(self) -> bool:
        """Return whether expert factors are swapped; refuse shapes that fit in neither way."""
        straight, swapped = [], []
        for target in self.targets.values():
            found = tuple(self.file.entries[name].spec.shape for name in self._names(target))
            expected = target.shapes
            exchanged = (expected[0][0], expected[1][0]), (expected[0][1], expected[1][1])
            if found == expected and target.experts and expected == exchanged:
                continue  # a square weight fits both ways and says nothing
            if found == expected:
                straight += [target] if target.experts else []
            elif target.experts and found == exchanged:
                swapped.append(target)
            else:
                raise self._shape_error(target, found)
        if straight and swapped:
            raise CheckpointError(
                f"{self.file.path}: the factors of {swapped[0].module} are swapped, those of "
                f"{straight[0].module} are not; the file was put together from two adapters"
            )
        only_square = not straight and any(t.experts for t in self.targets.values())
        return bool(swapped) or (only_square and saved_by_swapping_peft(self.config))

    def _shape_error(self, target: Target, found: tuple[tuple[int, ...], ...]) -> CheckpointError:
        rows, columns = target.shapes
        a, b = found
        if a[1:] == rows[1:] and b[:1] == columns[:1]:
            return CheckpointError(
                f"{self.file.path}: {target.module} has factors of rank "
                f"{a[0] / target.held:g}, {ADAPTER_CONFIG} says {target.rank}; the two "
                "files are of different adapters"
            )
        return CheckpointError(
            f"{self.file.path}: {target.module} has factors {list(a)} and {list(b)}, expected "
            f"{list(rows)} and {list(columns)}; the adapter is of another base"
        )


def _placed(factor: Tensor, target: Target) -> Tensor:
    """Return a factor ``[held, ...]`` as ``[E, ...]``, zeros for experts that have none."""
    if target.chosen is None:
        return factor
    assert target.experts is not None  # chosen are experts
    every = factor.new_zeros((target.experts, *factor.shape[1:]))
    every[list(target.chosen)] = factor
    return every


def _pefts_names(file: SafetensorsFile) -> bool:
    """Give the factors the names under which PEFT saves them; return whether any had another.

    A state dict that was saved as it was in training has the adapter's name in it
    (``lora_A.default.weight``) and the wrappers of compile and of several GPUs.

    Raises:
        CheckpointError: Two tensors are the same factor.
    """
    names: dict[str, str] = {}
    for stored in file.entries:
        named = _NAMED_FACTOR.fullmatch(stored)
        name = named[1] + named[2] if named else stored
        names[stored] = PREFIX + without_wrappers(name)
    twice = [stored for stored, name in names.items() if list(names.values()).count(name) > 1]
    if twice:
        raise CheckpointError(
            f"{file.path}: '{twice[0]}' and '{twice[1]}' are one factor; the file holds two "
            "adapters, save one"
        )
    renamed = any(stored != name for stored, name in names.items())
    if renamed:
        file.rename(names)
    return renamed


def open_adapter(
    path: str | Path,
    base: Checkpoint,
    *,
    other_base: bool = False,
    repair: bool = False,
    translate: bool = False,
) -> Adapter:
    """Open the adapter of a run, or an adapter's own folder, and check it against ``base``.

    Args:
        path: ``RUN/`` or a folder with ``adapter_config.json``.
        base: The base to use it on.
        other_base: Accept a base whose weights differ from those it was trained on.
        repair: Read expert factors that were saved swapped as if they were not.
        translate: Accept factors under other names than PEFT's, for who reads them through the
            adapter alone; PEFT itself would leave them out.

    Raises:
        CheckpointError: No adapter there, pickle files, a kind of adapter that cannot be merged,
            tensors missing or unread or of another shape, swapped factors, or another base.
    """
    folder = adapter_folder(path)
    adapter = Adapter(folder, base)
    if adapter.swapped and not repair:
        raise CheckpointError(
            f"{folder}: its expert factors have in and out swapped, as PEFT {SWAPPING_PEFT} wrote "
            f"them; write a repaired copy with `gptoss-tune adapter {folder} --for peft --repair "
            "--out DIR` and use that"
        )
    if adapter.renamed and not translate:
        raise CheckpointError(
            f"{folder}: its factors have other names than PEFT saves, and PEFT would leave them "
            f"out; write a copy with `gptoss-tune adapter {folder} --for peft --out DIR` and use "
            "that"
        )
    trained_on = record_of_adapter(folder).get("base", {}).get("fingerprint", {})
    if not other_base and not base.is_base_of(trained_on):
        raise CheckpointError(
            f"{folder}: was trained on a base whose weights differ from those in {base.path}; give "
            "the base of the training with --base, or accept this one with --other-base"
        )
    return adapter
