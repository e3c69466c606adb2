"""Opening a gpt-oss checkpoint: every reason not to trust it is found before a tensor is used.

A checkpoint is a folder (or a name on the Hub, which becomes a folder) with ``config.json`` and
safetensors files. Opening reads the headers only, so a truncated shard of a 60 GB model is found in
milliseconds and not after ten minutes of loading. Pickle files are never read, code from a
repository is never run, and an index cannot make us read outside its folder.

The rejected alternative is to let ``from_pretrained`` find out: it reports missing tensors as a
warning and fills them with random numbers.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.weights.config import QUANTIZATION_CONFIG, check_companions, read_config
from gptoss_tune.weights.fingerprint import content_hash, unhashed_bytes
from gptoss_tune.weights.gguf.file import refuse_gguf
from gptoss_tune.weights.layouts.experts import StackedExperts
from gptoss_tune.weights.layouts.foreign import without_weights
from gptoss_tune.weights.layouts.openai_config import is_openais_config
from gptoss_tune.weights.layouts.translation import translated
from gptoss_tune.weights.names import INDEX_NAME, SINGLE_NAME, ExpertFormat, expected_shapes
from gptoss_tune.weights.refusals import (
    refuse_other_tensors,
    refuse_unread_files,
    wrong_shape,
)
from gptoss_tune.weights.safetensors_file import SafetensorsFile, TensorSpec
from gptoss_tune.weights.sources import called, resolve
from gptoss_tune.weights.write import natural_order

_FINGERPRINT_BYTES = 4096  # of each tensor, in the fingerprint of earlier versions


class Checkpoint:
    """A checked gpt-oss checkpoint whose tensors are read one at a time.

    Attributes:
        path: Its folder.
        name: What the user called it: a folder, or a name on the Hub.
        config: ``config.json`` as a dictionary.
        expert_format: ``"mxfp4"`` when the experts are packed (``_blocks``, ``_scales``), else
            ``"bf16"`` (dense, in transformers' layout ``[E, in, out]``).
        renamed: Whether its files have other names or another order of the tensors than the release
            (``layouts``), which are translated here and which no other program translates.
        read_as: In which ways its tensors were stored.
        companions: The folder of the tokenizer and the licence: its own, or where they lie instead.
    """

    def __init__(self, path: Path, name: str | None = None, *, openai: bool = False) -> None:
        """Open the folder ``path``; see ``open_checkpoint`` for what is refused.

        Args:
            path: Its folder.
            name: What the user called it.
            openai: Take OpenAI's own layout too.
        """
        self.path = path
        self.name = name or str(path)
        self.config = read_config(path, openai=openai)
        check_companions(path)
        of_openai = openai and is_openais_config(read_object(path / "config.json"))
        self.files = _open_files(path, openai=of_openai)
        translation = translated(path, self.config, self.files)
        self.renamed, self.read_as = translation.other_names, translation.read_as
        self._file_of: dict[str, SafetensorsFile | StackedExperts] = {
            name: file for file in self.files for name in file.entries
        }
        if translation.stacks is not None:
            self._file_of |= dict.fromkeys(translation.stacks.entries, translation.stacks)
        if of_openai and any(name.endswith("_blocks") for name in self._file_of):
            self.config["quantization_config"] = dict(QUANTIZATION_CONFIG)
        self.companions = _release_above(path) if of_openai else path
        self.expert_format: ExpertFormat = _expert_format(path, self.config, self._file_of)
        self._hashed: str | None = None
        self._check_tensors()

    def with_files(self, files: Mapping[str, SafetensorsFile]) -> Checkpoint:
        """Return this checkpoint with some of its tensors read from other files, by name."""
        changed = copy.copy(self)
        changed._file_of = {**self._file_of, **files}
        return changed

    def names(self) -> list[str]:
        """Return every tensor's name in the order of the model."""
        return sorted(self._file_of, key=natural_order)

    def has(self, name: str) -> bool:
        """Return whether the checkpoint holds a tensor of this name."""
        return name in self._file_of

    def spec(self, name: str) -> TensorSpec:
        """Return name, dtype and shape of a tensor without reading it.

        Raises:
            CheckpointError: No such tensor.
        """
        return self._file(name).entries[name].spec

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.spec(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype on disk."""
        return self.spec(name).dtype

    def read(self, name: str) -> Tensor:
        """Return the tensor ``name`` on the CPU, as stored, in memory of its own."""
        return self._file(name).read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return ``tensor[start:stop]`` along the first axis (for an expert stack: experts)."""
        return self._file(name).read_rows(name, start, stop)

    def is_stored(self, name: str) -> bool:
        """Return whether a file holds the bytes of ``name`` as they are read."""
        return isinstance(self._file(name), SafetensorsFile)

    def source_of(self, name: str) -> SafetensorsFile | StackedExperts:
        """Return what ``name`` is read from: a file, or stacks that are made while read."""
        return self._file(name)

    def file_of(self, name: str) -> SafetensorsFile:
        """Return the file that holds ``name``, to copy its bytes as they are."""
        file = self._file(name)
        assert isinstance(file, SafetensorsFile), f"{name} is made while it is read"
        return file

    def prefetch(self, name: str) -> None:
        """Let the kernel read ``name`` ahead of its use."""
        self._file(name).prefetch(name)

    def nbytes(self) -> int:
        """Return the bytes of all tensors on disk."""
        return sum(self.spec(name).nbytes for name in self._file_of)

    def fingerprint(self) -> dict[str, str]:
        """Return what tells this base from another, as the record of a run keeps it.

        ``config`` is the sha256 of the configuration, ``content`` that of all bytes of all tensors
        (``weights.fingerprint``, where the cost is told), ``weights`` that of every tensor's name,
        dtype, shape and first 4 KiB, by which earlier versions knew a base. The last two do not
        depend on how tensors are divided over files.
        """
        config = hashlib.sha256((self.path / "config.json").read_bytes())
        return {
            "config": config.hexdigest(),
            "weights": self._hash_of_starts(),
            "content": self._content(),
        }

    def is_base_of(self, fingerprint: dict[str, Any]) -> bool:
        """Return whether these are the weights of a fingerprint, an earlier version's included.

        Args:
            fingerprint: ``base.fingerprint`` of a run's record; empty: nothing is known.
        """
        if "content" in fingerprint:
            return fingerprint["content"] == self._content()
        return fingerprint.get("weights") in (None, "") or (
            fingerprint["weights"] == self._hash_of_starts()
        )

    def unhashed_bytes(self) -> int:
        """Return how many bytes the next ``fingerprint`` has to read; 0 where they are known."""
        return unhashed_bytes(self._in_files()) if self._hashed is None else 0

    def _content(self) -> str:
        # What was opened is read once, also where its digests cannot be kept.
        if self._hashed is None:
            self._hashed = content_hash(self._in_files())
        return self._hashed

    def _hash_of_starts(self) -> str:
        digest = hashlib.sha256()
        for name, file in self._in_files():
            spec = self.spec(name)
            digest.update(f"{name} {spec.dtype} {spec.shape}\n".encode())
            digest.update(file.first_bytes(name, _FINGERPRINT_BYTES))
        return digest.hexdigest()

    def _in_files(self) -> list[tuple[str, SafetensorsFile | StackedExperts]]:
        return [(name, self._file_of[name]) for name in self.names()]

    @property
    def convert_command(self) -> str:
        """The command that writes these weights as every program reads them."""
        return f"gptoss-tune convert {shlex.quote(str(self.path))} --out DIR"

    def require_released_names(self) -> None:
        """Refuse names that are translated here, for who hands the folder to another program.

        Raises:
            CheckpointError: transformers and servers would find tensors missing, and draw them.
        """
        if self.renamed:
            how = next(each.stored_as for each in self.read_as if each.otherwise)
            raise CheckpointError(
                f"{self.path}: its tensors lie otherwise than in the release ({how}), where "
                "transformers and servers do not find them; write a copy in the released layout "
                f"with `{self.convert_command}` and use that"
            )

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        for file in self.files:
            file.close()

    def _file(self, name: str) -> SafetensorsFile | StackedExperts:
        if name not in self._file_of:
            raise CheckpointError(
                f"{self.path}: has no tensor '{name}'; its experts are in {self.expert_format} "
                f"format and it has {self.config['num_hidden_layers']} layers"
            )
        return self._file_of[name]

    def _check_tensors(self) -> None:
        """Refuse missing and unexplained tensors, wrong shapes and wrong dtypes."""
        expected = expected_shapes(self.config, self.expert_format)
        layers = self.config["num_hidden_layers"]
        refuse_other_tensors(self.path, layers, expected, self._file_of)
        for name, shape in expected.items():
            spec = self.spec(name)
            if spec.shape != shape:
                raise CheckpointError(
                    f"{self._file(name).path}: {wrong_shape(self.config, name, spec.shape, shape)}"
                )
            packed = name.endswith(("_blocks", "_scales"))
            if packed != (spec.dtype == torch.uint8) or not (
                packed or spec.dtype.is_floating_point
            ):
                raise CheckpointError(
                    f"{self._file(name).path}: '{name}' has dtype {spec.dtype}, expected "
                    f"{'uint8' if packed else 'a floating dtype'}"
                )


def open_checkpoint(
    name_or_path: str | Path, revision: str | None = None, *, translate: bool = False
) -> Checkpoint:
    """Open a gpt-oss checkpoint from a folder or from the Hub and check that it is whole.

    Args:
        name_or_path: A folder, or ``owner/name`` on the Hub.
        revision: Branch, tag or commit on the Hub; the default branch when None.
        translate: Accept tensors under other names than the release's, for who reads them through
            the checkpoint alone; other programs would not find them.

    Raises:
        CheckpointError: No such folder; another architecture; an unknown quantisation; files
            missing, truncated or outside the folder; tensors missing or of another shape; pickle
            files instead of safetensors.
        HubError: The Hub cannot be reached, or refuses.
    """
    folder = resolve(name_or_path, revision)
    checkpoint = Checkpoint(folder, called(name_or_path, folder))
    if not translate:
        checkpoint.require_released_names()
    return checkpoint


def open_any_layout(name_or_path: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a gpt-oss checkpoint in any layout that is understood, OpenAI's own among them.

    For who writes it anew: nobody else may hand such a folder on.

    Raises:
        CheckpointError, HubError: As ``open_checkpoint``.
    """
    folder = resolve(name_or_path, revision)
    return Checkpoint(folder, called(name_or_path, folder), openai=True)


def _open_files(path: Path, *, openai: bool) -> list[SafetensorsFile]:
    """Open the safetensors files that the index, or the lone file, names.

    Args:
        path: Their folder.
        openai: It is OpenAI's own layout, whose code reads every file that is there.
    """
    index = path / INDEX_NAME
    if not os.path.lexists(index):
        names = [SINGLE_NAME]
        if not os.path.lexists(path / SINGLE_NAME):
            names = sorted(file.name for file in path.glob("*.safetensors")) if openai else []
        if not names:
            refuse_gguf(path)
            raise CheckpointError(without_weights(path, SINGLE_NAME, INDEX_NAME))
        refuse_unread_files(path, names)
        return [SafetensorsFile(_weights_file(path, name, f"{path}: has")) for name in names]
    try:
        weight_map = read_object(inside(path, INDEX_NAME, f"{path}: has"))["weight_map"]
        names = sorted(set(weight_map.values()))
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"weight_map names {names[0]!r} as a file")
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: cannot be read ({error!r}); copy it again") from None
    missing = [one_line(name) for name in names if not os.path.lexists(path / name)]
    if len(missing) > 1:
        raise CheckpointError(
            f"{index}: names {len(names)} files, of which {len(missing)} are missing: "
            f"{', '.join(missing[:3])}{' and others' * (len(missing) > 3)}; copy or download them"
        )
    files = {name: SafetensorsFile(_weights_file(path, name, f"{index}: names")) for name in names}
    for tensor, name in weight_map.items():
        if tensor not in files[name].entries:
            raise CheckpointError(
                f"{index}: says '{tensor}' is in {name}, which does not hold it; the index is of "
                "another download, copy the checkpoint again"
            )
    for name, file in files.items():
        for tensor in file.entries:
            if weight_map.get(tensor) != name:
                raise CheckpointError(
                    f"{index}: places '{tensor}' in {weight_map.get(tensor)}, but {name} holds "
                    "it; the index is of another download, copy the checkpoint again"
                )
    refuse_unread_files(path, names)
    if SINGLE_NAME in files and len(files) > 1:
        raise CheckpointError(
            f"{index}: names {SINGLE_NAME} beside other files; transformers loads {SINGLE_NAME} "
            "alone, give the shards the names model-00001-of-00002.safetensors and so on"
        )
    return list(files.values())


def _weights_file(path: Path, name: str, where: str) -> Path:
    """Return a weights file of the folder ``path``, by the name that an index gives it."""
    if not name.endswith(".safetensors"):
        raise CheckpointError(f"{where} '{one_line(name)}'; expected a .safetensors file")
    return inside(path, name, where)


def _expert_format(path: Path, config: dict[str, Any], names: Collection[str]) -> ExpertFormat:
    """Return the experts' layout, which config and tensors must agree on."""
    packed = any(name.endswith(("_blocks", "_scales")) for name in names)
    declared = config.get("quantization_config") is not None
    if packed and not declared:
        raise CheckpointError(
            f"{path}: holds MXFP4 experts, but config.json has no quantization_config; take "
            "config.json from the release"
        )
    if declared and not packed:
        raise CheckpointError(
            f"{path}: config.json says MXFP4, but the experts are not packed; remove "
            "quantization_config from config.json"
        )
    return "mxfp4" if packed else "bf16"


def _release_above(path: Path) -> Path:
    """Return the folder above ``original/``, where the release has its tokenizer and licence."""
    above = path.absolute().parent
    return above if (above / "tokenizer.json").exists() else path
