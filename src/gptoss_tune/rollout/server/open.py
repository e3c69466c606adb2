"""The sampler of a recipe: who is asked, with which key, and how it gets weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptoss_tune.distributed import rank
from gptoss_tune.errors import MachineError
from gptoss_tune.files.atomic import disk_errors
from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.rollout.server.answers import Sizes
from gptoss_tune.rollout.server.completions import CompletionServer
from gptoss_tune.rollout.server.handover import (
    Handover,
    ShippedWeights,
    SwappedAdapter,
    write_record,
)
from gptoss_tune.rollout.server.sampler import ServerSampler
from gptoss_tune.weights import Checkpoint

KEY = "VLLM_API_KEY"
"""Variable of the server's key, as vLLM itself reads it; a recipe holds none."""


def open_server_sampler(
    section: GrpoSection,
    base: Checkpoint,
    record: Mapping[str, Any],
    *,
    save: Callable[[Path], None],
    merge_aware: bool,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ServerSampler:
    """Return the sampler of ``section``, of which a server answered that it is there.

    Args:
        section: With ``server_url`` and ``server_folder``.
        base: What is trained on, and what the server was started with.
        record: Of the run, as ``run.json`` has it: its base, and ``recipe.lora.merge_aware``.
        save: Writes the adapter to a new folder; every rank calls it, the first one writes.
        merge_aware: Whether the rounded weights are trained: they are shipped, else the adapter is
            swapped.
        device: Where a merge is computed.
        progress: Called with bytes done and bytes in all of a merge.

    Raises:
        CheckpointError: The address is none.
        MachineError: The server does not answer, or does not have the base's name.
    """
    assert section.server_url is not None and section.server_folder is not None
    key = os.environ.get(KEY, "").strip() or None
    server = CompletionServer(section.server_url, "policy", key)
    if not server.served():
        raise MachineError(f"{section.server_url}: serves no model; expected the base")
    folder = Path(section.server_folder).absolute()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    handover: Handover = (
        ShippedWeights(server, base, folder, device, progress)
        if merge_aware
        else SwappedAdapter(server, base, folder)
    )

    def saved(staging: Path) -> None:
        """Write the adapter and what an export asks of its run."""
        save(staging)
        if rank() == 0:
            write_record(staging, record)

    return ServerSampler(
        server,
        handover,
        sizes_of(base),
        save=saved,
        folder=folder,
        concurrency=section.rollout_batch,
        wants_choices=section.replay_routing,
    )


def sizes_of(base: Checkpoint) -> Sizes:
    """Return what answers of the model of ``base`` are checked against."""
    config = base.config
    return Sizes(
        vocabulary=config["vocab_size"],
        layers=config["num_hidden_layers"],
        experts=config["num_local_experts"],
        experts_per_token=config["num_experts_per_tok"],
    )
