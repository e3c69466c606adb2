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
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gptoss_tune.errors import CheckpointError, say_once
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
from gptoss_tune.weights.adapter_keys import PREFIX, pefts_names
from gptoss_tune.weights.adapter_targets import Target, targets_of
from gptoss_tune.weights.adapter_whole import (
    EMBEDDING,
    HEAD,
    Whole,
    refuse_other_shapes,
    whole_tensors,
)
from gptoss_tune.weights.adapters.low_rank import LowRank
from gptoss_tune.weights.adapters.single_experts import single_expert_modules, stacked
from gptoss_tune.weights.hashes import refuse_damaged
from gptoss_tune.weights.layouts.names import ONE_BY_ONE
from gptoss_tune.weights.names import layer_of
from gptoss_tune.weights.safetensors_file import SafetensorsFile
from gptoss_tune.weights.sources import adapter_folder

_ROWS_AT_ONCE = 1 << 14


class Adapter:
    """A checked PEFT adapter for one base.

    Attributes:
        path: Its folder.
        config: ``adapter_config.json``.
        targets: What it changes, by module.
        whole: What it does to tensors of the base other than by factors, by their names.
        renamed: Whether the file has other names for the factors than PEFT saves.
        layers: Of the base.
        single: Whether it has factors of single experts, for which PEFT finds no module.
        lacking: Experts that have no factors in a layer of which others have, counted over layers.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        """Open the adapter in the folder ``path`` for ``base``; see ``open_adapter``."""
        self.path = path
        self.config = read_adapter_config(path)
        refuse_damaged(path, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
        self.file = SafetensorsFile(inside(path, ADAPTER_WEIGHTS, f"{path}: has"))
        names = pefts_names(self.file.path, self.file.entries)
        self.renamed = any(stored != name for stored, name in names.items())
        if self.renamed:
            self.file.rename(names)
        singles = single_expert_modules(n.removeprefix(PREFIX) for n in self.file.entries)
        self.targets = targets_of(self.config, base, str(path / ADAPTER_CONFIG), singles)
        self.layers: int = base.config["num_hidden_layers"]
        self.single = any(target.singles for target in self.targets.values())
        scalings = {m: t.scaling for m, t in self.targets.items() if not t.experts}
        self.whole: Mapping[str, Whole] = {}
        self.whole = whole_tensors(
            self.config, base, self._unlike(base), scalings, str(self.file.path)
        )
        singles_of = [target for target in self.targets.values() if target.singles]
        self.lacking = sum((target.experts or 0) - target.held for target in singles_of)
        self._check_names(base)
        self.swapped = self._check_shapes()
        shapes = {name: entry.spec.shape for name, entry in self.file.entries.items()}
        refuse_other_shapes(self.whole, shapes, base, str(self.file.path))
        self._check_finite()

    @property
    def only_merged(self) -> str | None:
        """What nothing here holds beside a base, so that only a merge has it; ``None``: nothing."""
        if any(target.dora for target in self.targets.values()):
            return "rows that DoRA rescales"
        if self.whole:
            return f"{len(self.whole)} tensors beside its factors (first {min(self.whole)})"
        linear = [module for module, target in self.targets.items() if not target.experts]
        others = [m for m in linear if ".self_attn." not in m and m != "lm_head"]
        return f"factors of {others[0]}" if others else None

    def read(self, module: str, weight: float = 1.0) -> LowRank:
        """Return the factors of a target, repaired when the file has them swapped."""
        target = self.targets[module]
        held = target.held
        if target.singles:
            stacked_a, stacked_b = stacked(target.singles, self._of_one, target.features)
        elif self.swapped and target.experts:
            a, b = self._pair(target)
            # As saved: A [E*r, out], B [in, r*E]; their roles are exchanged.
            stacked_b = a.unflatten(0, (held, target.rank)).transpose(1, 2)
            stacked_a = b.unflatten(1, (target.rank, held)).permute(2, 1, 0)
        else:
            a, b = self._pair(target)
            stacked_a = a.unflatten(0, (held, target.rank))
            stacked_b = b.unflatten(1, (target.rank, held)).permute(2, 0, 1)
        stacked_a, stacked_b = (_placed(f.contiguous(), target) for f in (stacked_a, stacked_b))
        magnitude = self.file.read(target.magnitude).float() if target.dora else None
        scaling = target.scaling * weight
        return LowRank(stacked_a, stacked_b, scaling, target.chosen, magnitude)

    def _pair(self, target: Target) -> tuple[Tensor, Tensor]:
        a, b = (self.file.read(f"{target.key}.{x}").float() for x in target.letters)
        return (b.T, a.T) if target.embedding else (a, b)

    def _of_one(self, module: str) -> tuple[Tensor, Tensor]:
        """Return A and B of a module of one expert, as stored."""
        a, b = (self.file.read(f"{PREFIX}{module}.lora_{x}.weight") for x in "AB")
        return a, b

    @property
    def choice(self) -> dict[int, tuple[int, ...]] | None:
        """The experts that have factors, by layer, as a run chose them; ``None``: all."""
        if self.single:
            return None
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

    def _check_names(self, base: Checkpoint) -> None:
        """Refuse a file that lacks a wanted factor or holds one that nothing reads.

        PEFT stores a copy of a targeted ``lm_head``; it is allowed while it is the base's own.
        """
        held = set(self.file.entries)
        wanted = {name for target in self.targets.values() for name in target.stored}
        missing = sorted(wanted - held)
        wanted |= {whole.stored for whole in self.whole.values()}
        unread = sorted(n for n in held - wanted if not self._is_copy(n, base))
        if missing:
            experts = sum(".mlp.experts." in name for name in missing)
            raise CheckpointError(
                f"{self.file.path}: {len(missing)} of {len(wanted)} factors that "
                f"{ADAPTER_CONFIG} promises are missing ({experts} of experts), first "
                f"'{missing[0]}'; the adapter was saved incompletely, save it again"
            )
        if unread:
            raise CheckpointError(f"{self.file.path}: {self._why_unread(unread)}")

    def _why_unread(self, unread: list[str]) -> str:
        """Return why tensors that nothing reads are in the file."""
        first = unread[0]
        if any(name.endswith(".lora_magnitude_vector") for name in unread):
            return (
                f"has the row lengths of DoRA ('{first}'), and {ADAPTER_CONFIG} does not say "
                "use_dora; the two files are of different adapters"
            )
        if first.endswith((".base_layer.weight", ".original_module.weight")):
            return (
                f"holds a copy of the base's weight, '{first}', with other values than the base "
                "has; it was trained on another base, name that with --base"
            )
        single = [name for name in unread if ONE_BY_ONE.search(name)]
        told = f"{len(single)} of them of single experts, " if single else ""
        return (
            f"{len(unread)} tensors are targeted by nothing in {ADAPTER_CONFIG} and would be "
            f"dropped, {told}first '{first}'; the two files are of different adapters, or the "
            "adapter is of another base"
        )

    def _check_finite(self) -> None:
        """Refuse what is no number, NaN and infinity, reading a part at a time."""
        names = [name for target in self.targets.values() for name in target.stored]
        for name in (*names, *(whole.stored for whole in self.whole.values())):
            spec = self.file.entries[name].spec
            if not spec.dtype.is_floating_point:
                raise CheckpointError(
                    f"{self.file.path}: '{name}' is {str(spec.dtype).removeprefix('torch.')}, the "
                    "codes of a quantised factor; expected bf16, float16 or float32, save the "
                    "adapter unquantised"
                )
            for start in range(0, spec.shape[0], _ROWS_AT_ONCE):
                stop = min(spec.shape[0], start + _ROWS_AT_ONCE)
                if not torch.isfinite(self.file.read_rows(name, start, stop)).all():
                    raise CheckpointError(
                        f"{self.file.path}: '{name}' holds NaN or infinity; the training "
                        "diverged, export an earlier checkpoint"
                    )

    def _unlike(self, base: Checkpoint) -> set[str]:
        """Return the names of the tensors that are not just the base's head or embedding."""
        ends = {PREFIX + name for name in (EMBEDDING, HEAD)} & set(self.file.entries)
        asked = self.config.get("modules_to_save")
        return {
            n for n in self.file.entries if asked or n not in ends or not self._is_copy(n, base)
        }

    def _is_copy(self, name: str, base: Checkpoint) -> bool:
        """Return whether a tensor is what PEFT kept of the base's own, or of a tied head."""
        plain = name.removeprefix(PREFIX)
        for wrapper in (".base_layer.", ".original_module."):
            plain = plain.replace(wrapper, ".")
        if plain == HEAD and not base.has(HEAD) and EMBEDDING in self.whole:
            return self._equal(name, self.file, self.whole[EMBEDDING].stored)
        ours = plain.rpartition(".")[0] in self.targets or plain in self.whole
        if not base.has(plain) or not (ours or plain in (EMBEDDING, HEAD)):
            return False
        return self._equal(name, base, plain)

    def _equal(self, name: str, other: Checkpoint | SafetensorsFile, named: str) -> bool:
        """Return whether a tensor of the file has the values of another, reading a part each."""
        entry = other.spec(named) if isinstance(other, Checkpoint) else other.entries[named].spec
        rows = self.file.entries[name].spec.shape
        if rows != entry.shape:
            return False
        parts = ((n, min(rows[0], n + _ROWS_AT_ONCE)) for n in range(0, rows[0], _ROWS_AT_ONCE))
        return all(
            torch.equal(self.file.read_rows(name, *part), other.read_rows(named, *part))
            for part in parts
        )

    def _check_shapes(self) -> bool:
        """Return whether expert factors are swapped; refuse shapes that fit in neither way."""
        straight, swapped = [], []
        for target in self.targets.values():
            self._check_plain_shapes(target)
            if target.singles or target.embedding:
                continue
            names = (f"{target.key}.{x}" for x in target.letters)
            found = tuple(self.file.entries[name].spec.shape for name in names)
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

    def _check_plain_shapes(self, target: Target) -> None:
        """Refuse row lengths and factors of single experts of another shape than the base wants."""
        for name, expected in target.stored.items():
            shape = self.file.entries[name].spec.shape
            checked_here = target.singles or target.embedding or name == target.magnitude
            if shape != expected and checked_here:
                raise CheckpointError(
                    f"{self.file.path}: '{name}' is {list(shape)}, expected {list(expected)}; the "
                    "adapter is of another base, or of another rank than its configuration says"
                )

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
    if (adapter.renamed or adapter.single) and not translate:
        told = "have other names than PEFT saves" if adapter.renamed else "are of single experts"
        raise CheckpointError(
            f"{folder}: its factors {told}, and PEFT would leave them out; write a copy with "
            f"`gptoss-tune adapter {folder} --for peft --out DIR` and use that"
        )
    if adapter.lacking:
        say_once(
            f"{folder}: {adapter.lacking} experts have no factors in a layer of which others do; "
            "they stay the base's"
        )
    trained_on = record_of_adapter(folder).get("base", {}).get("fingerprint", {})
    if not other_base and not base.is_base_of(trained_on):
        raise CheckpointError(
            f"{folder}: was trained on a base whose weights differ from those in {base.path}; give "
            "the base of the training with --base, or accept this one with --other-base"
        )
    return adapter
