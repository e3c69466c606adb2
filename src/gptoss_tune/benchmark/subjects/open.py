"""From names to subjects: what is in process is opened and checked, a server is asked its model.

No weights are loaded here; a base and the first run on it share theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptoss_tune.benchmark.subjects.in_process import InProcess, Weights
from gptoss_tune.benchmark.subjects.named import NamedSubject
from gptoss_tune.benchmark.subjects.server import ChatServer, Served, served_model
from gptoss_tune.benchmark.subjects.subject import Subject
from gptoss_tune.evaluate.load import EvaluatedModel, open_evaluated_model
from gptoss_tune.evaluate.trained_as import answering_section
from gptoss_tune.harmony.render import Renderer


@dataclass(frozen=True)
class Access:
    """How subjects are opened and asked.

    Attributes:
        device: Where models in process go.
        base: What ``base`` stands for, and of which adapters without a record are; ``None``: each
            adapter's own.
        revision: Of it, on the Hub.
        other_base: Accept a base with other weights than an adapter was trained on.
        dtype: Compute dtype; ``None``: the run's, else bfloat16.
        batch_size: Prompts that they answer at a time.
        concurrency: Questions that a server is asked at a time.
        timeout_s: For one answer of a server.
        key: What servers want as bearer token.
    """

    device: torch.device
    base: str | None = None
    revision: str | None = None
    other_base: bool = False
    dtype: str | None = None
    batch_size: int = 8
    concurrency: int = 4
    timeout_s: float = 600.0
    key: str | None = None


def open_subjects(
    named: Sequence[NamedSubject], renderer: Renderer, access: Access
) -> list[Subject]:
    """Return the subjects in their order.

    Args:
        named: From ``read_subjects``; the base is named.
        renderer: The one that made the questions' ids.
        access: How.

    Raises:
        CheckpointError, HubError: A model cannot be found, or is damaged.
        MachineError: A server does not answer, or does not say what it serves.
    """
    weights: dict[str, Weights] = {}
    for subject in named:
        if subject.kind == "model":
            weights[subject.label] = _weights(subject.target, access, adapts=True)
    for subject in named:
        if subject.kind == "base":
            own = _weights(subject.target, access, adapts=False)
            weights[subject.label] = _tuned_on(own.opened, list(weights.values())) or own
    return [
        _served(subject, renderer, access)
        if subject.kind == "server"
        else InProcess(
            subject.label,
            weights[subject.label],
            renderer.vocabulary,
            base=subject.kind == "base",
            batch_size=access.batch_size,
        )
        for subject in named
    ]


def _weights(target: str, access: Access, *, adapts: bool) -> Weights:
    base = access.base if adapts else None
    opened = open_evaluated_model(
        target,
        base=base,
        revision=access.revision if base is not None or not adapts else None,
        other_base=access.other_base,
    )
    return Weights(opened, answering_section(opened, access.dtype), access.device)


def _tuned_on(base: EvaluatedModel, others: Sequence[Weights]) -> Weights | None:
    """Return weights that are this base with an adapter beside it."""
    for weights in others:
        opened = weights.opened
        if opened.adapter is not None and opened.checkpoint.path == base.checkpoint.path:
            return weights
    return None


def _served(subject: NamedSubject, renderer: Renderer, access: Access) -> Served:
    model = subject.model or served_model(subject.target, access.key)
    server = ChatServer(subject.target, model, access.key, access.timeout_s)
    return Served(subject.label, server, renderer, concurrency=access.concurrency)
