"""Instances of Azure ML's managed online endpoints, by their GPUs.

Names, GPU types and counts: Hugging Face's documentation of Azure ML, "Supported Hardware", and
Microsoft's tables of the NC A100 v4, NCads H100 v5, ND A100 v4, NDm A100 v4 and ND H100 v5 sizes,
read in November 2026. The H100 of the NC sizes is the NVL with 94 GB, which the first source lists
as 80 GB. Sizes with H200 exist as virtual machines; that endpoints take them was not found written,
so they are not chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.sizes.memory import Need, gib
from gptoss_tune.plan.gpus import Gpu, card


@dataclass(frozen=True)
class Instance:
    """An instance type.

    Attributes:
        name: As ``instance_type`` takes it.
        gpu: Name of its GPUs in ``plan.gpus``.
        gpus: How many it has.
    """

    name: str
    gpu: str
    gpus: int


INSTANCES = (
    Instance("Standard_NC40ads_H100_v5", "h100nvl-94gb", 1),
    Instance("Standard_NC24ads_A100_v4", "a100-80gb", 1),
    Instance("Standard_NC80adis_H100_v5", "h100nvl-94gb", 2),
    Instance("Standard_NC48ads_A100_v4", "a100-80gb", 2),
    Instance("Standard_NC96ads_A100_v4", "a100-80gb", 4),
    Instance("Standard_ND96isr_H100_v5", "h100-80gb", 8),
    Instance("Standard_ND96amsr_A100_v4", "a100-80gb", 8),
    Instance("Standard_ND96asr_v4", "a100-40gb", 8),
)
"""What is chosen from, the preferred of each count first."""


def instance_for(gpus: int, gpu: Gpu | None, needed: Need | None) -> Instance:
    """Return the instance with this many GPUs whose memory holds the model.

    Args:
        gpus: GPUs that share the weights: an instance with more would leave some idle and paid.
        gpu: The GPU asked for, or None for any.
        needed: What each GPU needs, or None where it is not known.

    Raises:
        CheckpointError: No instance has this many GPUs, of this kind, or with this much memory.
    """
    counted = [one for one in INSTANCES if one.gpus == gpus]
    if not counted:
        counts = sorted({one.gpus for one in INSTANCES})
        raise CheckpointError(
            f"--gpus is {gpus}; the instance types of Azure ML have "
            f"{', '.join(map(str, counts))}: choose one of these"
        )
    asked = [one for one in counted if gpu is None or one.gpu == gpu.name]
    if gpu is not None and not asked:
        offered = ", ".join(f"{one.gpus} x {one.gpu} ({one.name})" for one in INSTANCES)
        raise CheckpointError(
            f"--gpu is {gpu.name} with --gpus {gpus}; Azure ML has no such instance type, but "
            f"{offered}"
        )
    for one in asked:
        if needed is None or needed.fits(card(one.gpu).memory_bytes):
            return one
    assert needed is not None
    largest = max(card(one.gpu).memory_bytes for one in asked)
    raise CheckpointError(
        f"--gpus is {gpus}; each GPU needs {gib(needed.weights)} for weights and "
        f"{gib(needed.request)} for one request of the full context, and the largest of "
        f"{', '.join(one.name for one in asked)} has {gib(largest)}: choose more --gpus, a smaller "
        "--context, or merge with --format mxfp4"
    )
