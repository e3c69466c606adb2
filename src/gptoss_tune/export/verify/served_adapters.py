"""Verification of a server of several adapters: each name answers with its own adapter.

A server that cannot apply an adapter answers with the base, one whose adapters are in each other's
places answers well, and a key that matches nothing is dropped without a word. So each name's
answers are held against what the base computes with that adapter, and against all that it could be
instead: the base alone, every other adapter, and this one without its experts or without its
attention. A name is right when its own is the only one that is near; where another is as near,
nothing is proved. What is near is told as for one model (``server``).

All of them are computed from one base, layer by layer, so that memory holds one layer of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.export.openai_server import ModelList
from gptoss_tune.export.verify.completions import CompletionsServer
from gptoss_tune.export.verify.layerwise import LayerwiseModel, last_logits_of_each
from gptoss_tune.export.verify.server import (
    FLOOR_NATS,
    SERVED_PROMPTS,
    Answers,
    ask_server,
    gap,
    one_token,
)
from gptoss_tune.export.verify.verify import Check
from gptoss_tune.harmony.tokenizer_file import open_tokenizer
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import Adapter


def ask_each(server: CompletionsServer, names: list[str]) -> dict[str, Answers | None]:
    """Return what a server answers under each of ``names``; ``None`` where it lists no such name.

    Raises:
        MachineError: It does not answer, or with something else than models and completions.
    """
    listed = set(ModelList(server.url, "", server.key).names())
    return {
        name: ask_server(replace(server, model=name)) if name in listed else None for name in names
    }


@dataclass(frozen=True)
class LocalAnswers:
    """What one base says with each of several adapters after each of ``SERVED_PROMPTS``.

    Attributes:
        base_name: The name that the base is served under.
        names: All names that are served, the base's first.
        exact: By name, and ``name without its experts`` and the like: log-probabilities ``[n, V]``.
        rounded: By name: the same in bf16.
        tokenizer: The base's.
    """

    base_name: str
    names: tuple[str, ...]
    exact: Mapping[str, Tensor]
    rounded: Mapping[str, Tensor]
    tokenizer: Tokenizer


def local_answers(
    base: Checkpoint, base_name: str, adapters: Mapping[str, Adapter], *, device: str = "cpu"
) -> LocalAnswers:
    """Compute what ``base`` says alone, with each adapter, and with the parts of each.

    Args:
        base: The base of all.
        base_name: The name that it is served under.
        adapters: By the name they are served under.
        device: Where to compute.

    Raises:
        CheckpointError: An adapter has the base's name.
    """
    if base_name in adapters:
        raise CheckpointError(f"'{base_name}' is the name of the base and of an adapter")
    tokenizer = open_tokenizer(base.path / "tokenizer.json")
    prompts = [tokenizer.encode(p, add_special_tokens=False).ids for p in SERVED_PROMPTS]
    whole = {base_name: [], **{n: [WeightedAdapter(a)] for n, a in adapters.items()}}
    parts = {
        f"{name} without {what}": [WeightedAdapter(part)]
        for name, adapter in adapters.items()
        for what, part in _parts(adapter).items()
    }
    models = [
        LayerwiseModel(base, each, device=device) for each in (*whole.values(), *parts.values())
    ]
    models += [
        LayerwiseModel(base, each, device=device, dtype=torch.bfloat16) for each in whole.values()
    ]
    rows = [logits.log_softmax(-1) for logits in last_logits_of_each(models, prompts)]
    exact = dict(zip((*whole, *parts), rows, strict=False))
    rounded = dict(zip(whole, rows[len(exact) :], strict=True))
    return LocalAnswers(base_name, tuple(whole), exact, rounded, tokenizer)


def verify_each(answers: Mapping[str, Answers | None], local: LocalAnswers) -> list[Check]:
    """Return a check for the base and each adapter: its name answers as it computes.

    Args:
        answers: From ``ask_each``.
        local: What each has to answer.
    """
    checks = []
    for name in local.names:
        told = answers[name]
        what = "the base alone" if name == local.base_name else f"the base with '{name}'"
        if told is None:
            missing = f"the server lists no model '{name}'; expected {what}"
            checks.append(Check(f"served {name}", False, missing, required=True, of_server=True))
        else:
            checks.append(_judged(name, what, told, local))
    return checks


def _parts(adapter: Adapter) -> dict[str, Adapter]:
    """Return what a server may have applied of an adapter, by what it left out."""
    found = {}
    for what, left_out in (("its experts", True), ("its attention", False)):
        kept = {m: t for m, t in adapter.targets.items() if bool(t.experts) != left_out}
        if kept and len(kept) < len(adapter.targets):
            part = copy.copy(adapter)
            part.targets = kept
            found[what] = part
    return found


def _judged(name: str, what: str, told: Answers, local: LocalAnswers) -> Check:
    """Return whether the answers under one name are its own, and nobody else's."""
    check = f"served {name}"
    tokens = [one_token(local.tokenizer, text) for text, _ in told]
    read = [i for i, token in enumerate(tokens) if token is not None]
    if len(read) < len(tokens) / 2:
        detail = f"cannot tell: only {len(read)} of {len(tokens)} answers are the text of one token"
        return Check(check, None, detail, required=True, of_server=True)
    exact = {each: rows[read] for each, rows in local.exact.items()}
    if not all(math.isfinite(rows.logsumexp(-1).sum()) for rows in exact.values()):
        return Check(check, False, "the local model computes NaN or infinity", required=True)
    served = torch.tensor([tokens[i] for i in read])
    numbers = [row for row, i in enumerate(read) if told[i][1] is not None]
    values = torch.tensor([told[read[row]][1] for row in numbers]) if numbers else None
    judges = {
        each: _Judge(exact[each], rows[read], served, numbers, values)
        for each, rows in local.rounded.items()
    }
    judge = judges[name]
    off = {each: judge.distance(rows) for each, rows in exact.items()}
    alike = [each for each, rows in exact.items() if each != name and not judge.told_apart(rows)]
    figures = {
        "tokens": len(read),
        "gap": gap(exact[name], served),
        "noise": gap(exact[name], judge.rounded.argmax(-1)),
        "served_from": off,
        "alike": alike,
    }
    detail = (
        f"the served answers are {off[name]:.4f} nats from {what} on {len(read)} prompts "
        f"(allowed {judge.near:.4f})"
    )
    others = {each: value for each, value in off.items() if each != name}
    nearest = min(others, key=others.__getitem__, default=name)
    if not judge.right:
        # A part of an adapter is rounded as the adapter is.
        as_near = judges.get(nearest, judge).near
        known = f"those of {nearest}" if off[nearest] <= as_near else "those of none that is known"
        detail += f"; they are {known}, {nearest} is {off[nearest]:.4f} away"
        return Check(check, False, detail, figures, required=True, of_server=True)
    if alike:
        detail = f"cannot tell it from {', '.join(alike)}: {detail}"
        return Check(check, None, detail, figures, required=True, of_server=True)
    detail += f", {off[nearest]:.4f} from the nearest other, {nearest}"
    return Check(check, True, detail, figures, required=True, of_server=True)


@dataclass(frozen=True)
class _Judge:
    """One name's answers beside one local model.

    Attributes:
        exact: Log-probabilities ``[n, V]`` of the model that should be served, in fp32.
        rounded: The same in bf16.
        served: ``[n]``, the tokens that were served.
        numbers: Rows whose log-probability the server tells.
        values: Those log-probabilities, or ``None``.
    """

    exact: Tensor
    rounded: Tensor
    served: Tensor
    numbers: list[int]
    values: Tensor | None

    @property
    def allowed(self) -> float:
        """How far below the model's own the served choices may be, in nats."""
        return max(2 * gap(self.exact, self.rounded.argmax(-1)), FLOOR_NATS)

    @property
    def near(self) -> float:
        """How far the served log-probabilities may be off, in nats."""
        if self.values is None:
            return self.allowed
        noise = (self._of(self.exact) - self._of(self.rounded)).abs().mean().item()
        return max(2 * noise, FLOOR_NATS)

    @property
    def right(self) -> bool:
        """Whether choices and log-probabilities are the model's own."""
        close = self.values is None or self.distance(self.exact) <= self.near
        return close and gap(self.exact, self.served) <= self.allowed

    def distance(self, other: Tensor) -> float:
        """Return how far the answers are from those of a model ``[n, V]``, on average in nats.

        By the log-probabilities where the server tells them, else by its choices.
        """
        if self.values is None:
            return gap(other, self.served)
        return (self._of(other) - self.values).abs().mean().item()

    def told_apart(self, other: Tensor) -> bool:
        """Return whether a server of ``other`` would have been seen to be another."""
        if gap(self.exact, other.argmax(-1)) > self.allowed:
            return True
        if self.values is None:
            return False
        return (self._of(self.exact) - self._of(other)).abs().mean().item() > 2 * self.near

    def _of(self, rows: Tensor) -> Tensor:
        """Return the log-probabilities of the served tokens, where the server tells its own."""
        return rows.gather(1, self.served[:, None])[self.numbers, 0]
