"""A GGUF read as the checkpoint that it was written from, for everything that compares weights.

Legend: E experts; ``in`` and ``out`` of a projection.

Gate and up are laid together again, blocks get the release's order of nibbles, dense experts are
transposed back, and what was widened to F32 is bf16 again. Names, shapes and dtypes are those of
the merge's steps, so that what compares two safetensors folders compares a GGUF as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.gguf.layout import GgufStep, GgufTensor, released_blocks
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.gguf.file import BLOCK_BYTES, GgufModel
from gptoss_tune.weights.names import ExpertFormat
from gptoss_tune.weights.safetensors_file import TensorSpec
from gptoss_tune.weights.write import natural_order

_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}


class GgufCheckpoint(Checkpoint):
    """The tensors of a GGUF under the release's names."""

    def __init__(
        self,
        place: Path,
        model: GgufModel,
        steps: Sequence[GgufStep],
        config: dict[str, Any],
        expert_format: ExpertFormat,
    ) -> None:
        """Read ``model`` as what ``steps`` write.

        Args:
            place: Its folder or file.
            model: The opened files, which hold every tensor of ``steps`` in its shape and type.
            steps: What the tensors were made of.
            config: ``config.json`` of the safetensors folder of the same merge.
            expert_format: Of its experts.
        """
        self.path, self.name, self.config = place, str(place), config
        self.expert_format: ExpertFormat = expert_format
        self.renamed = False
        self.files = []
        self._model = model
        self._of = {
            spec.name: (step, number)
            for step in steps
            for number, spec in enumerate(step.step.outputs)
        }

    def names(self) -> list[str]:
        """Return every tensor's name in the order of the model."""
        return sorted(self._of, key=natural_order)

    def has(self, name: str) -> bool:
        """Return whether there is a tensor of this name."""
        return name in self._of

    def spec(self, name: str) -> TensorSpec:
        """Return name, dtype and shape as the merge's step has them."""
        if name not in self._of:
            raise CheckpointError(f"{self.path}: has no tensor '{name}'")
        step, number = self._of[name]
        return step.step.outputs[number]

    def read(self, name: str) -> Tensor:
        """Return a whole tensor."""
        return self.read_rows(name, 0, self.spec(name).shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows of a tensor, or experts of a stack."""
        spec = self.spec(name)
        step, number = self._of[name]
        halves = [stored_rows(tensor, self._model, start, stop) for tensor in step.tensors]
        if len(step.step.outputs) == 2:
            halves = [released_blocks(half)[number] for half in halves]
        # Gate and up lie in the release row by row in turn.
        rows = torch.stack(halves, dim=2).flatten(1, 2) if len(halves) == 2 else halves[0]
        if step.tensors[0].name.endswith("_exps.weight") and len(step.step.outputs) == 1:
            rows = rows.transpose(1, 2)
        return rows.to(spec.dtype).contiguous()

    def prefetch(self, name: str) -> None:
        """Do nothing: rows are read when they are asked for."""

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        self._model.close()


def stored_rows(tensor: GgufTensor, model: GgufModel, start: int, stop: int) -> Tensor:
    """Return rows as they lie in the file: values, or of MXFP4 the bytes ``[..., out, n * 17]``.

    Args:
        tensor: Whose rows they are.
        model: The opened files.
        start: The first of them.
        stop: The one after the last.
    """
    data = torch.frombuffer(model.read_rows(tensor.name, start, stop), dtype=torch.uint8)
    shape = (stop - start, *tensor.shape[1:])
    if tensor.type == "MXFP4":
        values, size = BLOCK_BYTES["MXFP4"]
        return data.view(*shape[:-1], shape[-1] // values * size)
    return data.view(_DTYPES[tensor.type]).view(shape)
