"""Adapter + base -> merged checkpoint: streamed, exact, resumable, named only when complete.

The result is prepared in a hidden folder beside its final place, tensor by tensor. After a kill at
any point the next run keeps what is whole, writes the rest and ends with the same bytes as a run
that was never stopped: nothing in the result depends on time, order or what was there before. What
is written is the same whatever file it is written to (``produce``); how it lies there and how it is
continued is the container's (``shards``, ``export.gguf.container``).

The rejected alternative is PEFT's ``merge_and_unload`` on a loaded model: it needs the whole model
in memory in bf16, adds bf16 to bf16, and cannot write MXFP4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gptoss_tune.export.assets import completed_companions
from gptoss_tune.export.device import compute_device
from gptoss_tune.export.merge.container import ContainerOpener
from gptoss_tune.export.merge.lineage import lineage_report, refuse_unsound_sum
from gptoss_tune.export.merge.options import MergeOptions, TooLittleSurvives
from gptoss_tune.export.merge.produce import Producer
from gptoss_tune.export.merge.shards import SafetensorsFiles
from gptoss_tune.export.merge.staging import (
    PLAN,
    check_room,
    refuse_loss,
    staging,
    survival_report,
)
from gptoss_tune.export.merge.steps import WeightedAdapter, plan_steps
from gptoss_tune.files.atomic import disk_errors, publish, refuse_existing, staging_folder
from gptoss_tune.run.record import prompts_trained_on
from gptoss_tune.weights import Checkpoint

__all__ = ["MergeOptions", "TooLittleSurvives", "merge"]


def merge(
    base: Checkpoint,
    adapters: Sequence[WeightedAdapter],
    out: Path,
    options: MergeOptions,
    *,
    container: ContainerOpener = SafetensorsFiles,
    progress: Callable[[int, int], None] = lambda done, total: None,
    inspect: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Write ``base`` plus the weighted sum of ``adapters`` to the new folder ``out``.

    Args:
        base: The checkpoint that the adapters were trained on.
        adapters: What is added; nothing: the base is written in another format, or as it is.
        out: Folder to create. A merge that was stopped is continued from the folder
            ``.OUT.incomplete`` beside it.
        options: Format, shard size, device, and what loss to accept.
        container: What is written: safetensors files, or ``export.gguf.container.GgufFiles``.
        progress: Called with bytes done and bytes in all.
        inspect: Called with the complete folder before it gets its name; an error it raises keeps
            the name from appearing.

    Returns:
        The report, which is also in ``OUT/merge_report.json``.

    Raises:
        CheckpointError: ``out`` exists; an option or the sum is not sound (``lineage``); the base
            lacks files that the result needs, or has what a GGUF cannot hold; the result would hold
            NaN or infinity.
        TooLittleSurvives: MXFP4 keeps less of the change than ``options`` wants.
        MachineError: No room on the disk, or it cannot be written; another merge is at work; the
            library of the container is not installed.
    """
    refuse_existing(out)
    device = compute_device(options.device)
    refuse_unsound_sum(base, adapters)
    completed = completed_companions(base)
    producer = Producer(base, adapters, device)
    folder = staging_folder(out)
    steps = plan_steps(producer.source, adapters, options.expert_format)
    files = container(producer, steps, folder, out.absolute().name, completed, options)
    identity = {**_identity(producer, options), **files.identity}
    with staging(folder, identity, files.holds_anything):
        files.prepare()
        check_room(folder, files.missing_bytes())
        files.write(progress)
        report = {**identity, "bytes": files.nbytes, "survival": survival_report(files.survivals())}
        if asked := _prompts_trained_on(adapters):
            report["prompts_trained_on"] = asked
        if completed:
            report["completed"] = sorted(completed)
        refuse_loss(report["survival"], options, folder, files.dense_format)
        files.finish(report, completed)
        inspect(folder)
        files.remove_notes()
        (folder / PLAN).unlink()
        refuse_existing(out)
        with disk_errors(out):
            publish(folder, out)
    return report


def _read_as(base: Checkpoint) -> dict[str, Any]:
    """Return how the base's tensors were stored, where that was not as in the release."""
    return {"read_as": [asdict(each) for each in base.read_as]} if base.renamed else {}


def _identity(producer: Producer, options: MergeOptions) -> dict[str, Any]:
    """Return everything the resulting bytes depend on."""
    return {
        "base": {
            "fingerprint": producer.base.fingerprint(),
            "format": producer.base.expert_format,
            **_read_as(producer.base),
            **lineage_report(producer.base),
        },
        "adapters": [
            {
                "sha256": each.adapter.digest,
                "weights": each.adapter.weights_digest,
                "weight": each.weight,
            }
            for each in producer.adapters
        ],
        "format": options.expert_format,
        "max_shard_size": options.max_shard_size,
        "device": torch.device(options.device).type,
        "scale_rule": producer.scale_rule,
        "merge_aware": producer.scale_rule == "ocp",
    }


def _prompts_trained_on(adapters: Sequence[WeightedAdapter]) -> dict[str, str]:
    """Return what the runs of all ``adapters`` say of their system messages, if it is one thing."""
    told = [prompts_trained_on(each.adapter.path) for each in adapters]
    return told[0] if told and all(one == told[0] for one in told) else {}
