"""The recipe's ``distributed`` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gptoss_tune.recipe.schema.value_types import Section


class DistributedSection(Section):
    """How many processes train, and how they share the model."""

    num_processes: Annotated[int, Field(ge=1, le=65536)] = 1
    """Processes, one per GPU; `gptoss-tune train` starts them."""
    strategy: Parallelism | None = None
    """Each GPU holds the model (ddp), or a share of it (fsdp2); null: as the launcher says."""
    context_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that share each row, for rows too long for one GPU; divides num_processes."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 120
    """Seconds one process may be silent, or keep the others waiting in a step, before all stop."""

    @property
    def data_parallel(self) -> int:
        """Groups of processes that each train rows of their own."""
        return self.num_processes // self.context_parallel


Parallelism = Literal["ddp", "fsdp2"]
"""``ddp``: each GPU holds the whole model; ``fsdp2``: each holds a share and gathers layers."""
