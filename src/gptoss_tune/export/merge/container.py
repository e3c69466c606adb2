"""What a merge asks of the files that it writes; one class for each kind of file.

``merge.merge`` decides what is merged, where it is prepared and when it gets its name; a container
decides how bytes lie in files and how a stopped merge is continued in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from gptoss_tune.export.merge.options import MergeOptions
from gptoss_tune.export.merge.produce import Producer
from gptoss_tune.export.merge.quantize import Survival
from gptoss_tune.export.merge.steps import Step


class Container(Protocol):
    """The files of one merge, in its staging folder."""

    dense_format: ClassVar[str]
    """What ``merge --format`` calls these files with experts that are not rounded to MXFP4."""
    nbytes: int
    """Bytes of all files together."""
    identity: Mapping[str, Any]
    """What of the report is these files' own, and part of what a stopped merge is known by."""

    def prepare(self) -> None:
        """Look at what an earlier try left, and drop what is not what it wrote."""
        ...

    def missing_bytes(self) -> int:
        """Return how many bytes are still to be written, once prepared."""
        ...

    def holds_anything(self) -> bool:
        """Return whether a next run could keep something of what was written."""
        ...

    def write(self, progress: Callable[[int, int], None]) -> None:
        """Write what is missing; ``progress`` is called with bytes done and bytes in all."""
        ...

    def survivals(self) -> list[Survival]:
        """Return what survived of each changed stack, in the order of the model."""
        ...

    def finish(self, report: Mapping[str, Any], completed: Mapping[str, bytes]) -> None:
        """Write what goes with the weights.

        Args:
            report: ``merge_report.json``.
            completed: Files that the base lacks and this package has, by name.
        """
        ...

    def remove_notes(self) -> None:
        """Remove what only a resumed merge needs."""
        ...


class ContainerOpener(Protocol):
    """A class of containers."""

    def __call__(
        self,
        producer: Producer,
        steps: Sequence[Step],
        folder: Path,
        name: str,
        completed: Mapping[str, bytes],
        options: MergeOptions,
    ) -> Container:
        """Plan the files of a merge.

        Args:
            producer: Computes the tensors.
            steps: What is written.
            folder: Where they are prepared.
            name: What the folder will be called.
            completed: Files that the base lacks and this package has, by name.
            options: Format of the experts, and bytes of one file at most.

        Raises:
            CheckpointError: These files cannot hold the base.
            MachineError: What they are written with is not installed.
        """
        ...
