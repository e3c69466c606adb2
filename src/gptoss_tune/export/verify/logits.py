"""Logits of a merged checkpoint against those of base + adapter: how far apart they may be.

The divergence is summed in float64. For a small change of the logits, KL is a sum of first-order
terms ``p * delta`` that cancel down to ``delta**2 / 2``: in fp32 each of the 201,088 terms carries
an error of about ``6e-8 * p * |log p|``, so that below about 1e-6 nats a token the sum is noise of
either sign. An adapter of rank 1 after a short training lies there: in fp32 its KL to the bare base
is as often negative as not, which reads as an adapter that does nothing. In float64 the error is
about 1e-15, far below what the fp32 logits themselves are known to.

How near a right file can be depends on how much of the change its format holds, which the weights'
check measures: where bf16 holds the share h of a change, the logits lack what 1 - h of it does, and
KL, quadratic in a small change, is about ``(1 - h)**2`` of the bare base's. Each weight counts by
the square of its change, so that a negligible one that rounding drops allows nothing to the others.
The thin changes of rank 1, which act along one direction with elements below a rounding step, are
those it matters for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.export.verify.layerwise import LayerwiseModel
from gptoss_tune.export.verify.weights import TargetReport
from gptoss_tune.harmony.tokenizer_file import open_tokenizer
from gptoss_tune.weights import Checkpoint

_SHARE = 0.05  # of the divergence that the adapter itself causes
_FLOOR = 2e-3  # nats a token: what rounding weights to bf16 may cost
_PACKED = 2.0  # times what rounding the base alone to MXFP4 costs
PROMPTS = (
    "<|start|>user<|message|>What is 17 times 23?<|end|><|start|>assistant",
    "<|start|>user<|message|>Write one sentence about the sea.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>The sea",
    "<|start|>developer<|message|># Instructions\n\nAnswer briefly.<|end|><|start|>user<|message|>"
    "def add(a, b):<|end|><|start|>assistant<|channel|>analysis<|message|>",
)
"""What the logits are compared on."""


@dataclass(frozen=True)
class LogitsAnswer:
    """What the logits say of a merged file.

    Attributes:
        passed: Whether they are near enough; None where the prompts say nothing of the adapter.
        detail: The answer in one sentence.
        figures: Divergences in nats a token, agreement, largest difference.
    """

    passed: bool | None
    detail: str
    figures: dict[str, Any]


def check_logits(
    base: Checkpoint,
    merged: Checkpoint,
    adapters: Sequence[WeightedAdapter],
    targets: Sequence[TargetReport],
    *,
    merge_aware: bool,
    device: str,
    tokenizer: Path | None = None,
) -> LogitsAnswer:
    """Compare base + adapters, as trained, with the merged file and with the bare base.

    Args:
        base: What was merged into.
        merged: The file in question.
        adapters: What was merged; nothing for a base that was only converted.
        targets: What the file holds of each change.
        merge_aware: The rounded weights were trained.
        device: Where to compute.
        tokenizer: The folder of the tokenizer; ``None``: that of ``merged``.
    """
    prompts = prompt_ids(tokenizer or merged.path)
    bare = LayerwiseModel(base, device=device).logits(prompts)
    trained = (
        LayerwiseModel(base, adapters, merge_aware=merge_aware, device=device).logits(prompts)
        if adapters
        else bare
    )
    figures = compare_logits(trained, LayerwiseModel(merged, device=device).logits(prompts))
    change = figures["kl_base"] = compare_logits(trained, bare)["kl"]
    if not (math.isfinite(figures["kl"]) and math.isfinite(change)):
        return LogitsAnswer(False, "the logits are NaN or infinite", figures)
    lost = lost_share(targets, merge_aware=merge_aware)
    allowed = allowed_divergence(change, lost)
    if merged.expert_format == "mxfp4" and not merge_aware:
        noise = _FLOOR
        if base.expert_format != "mxfp4":
            packed = LayerwiseModel(base, device=device, packed=True).logits(prompts)
            figures["kl_packed"] = compare_logits(bare, packed)["kl"]
            noise = max(_PACKED * figures["kl_packed"], _FLOOR)
        allowed = allowed_in_mxfp4(change, lost, noise)
    compared = f"base + adapter (the bare base: {change:.2e})" if adapters else "the base"
    detail = (
        f"KL {figures['kl']:.2e} to {compared}, top-1 equal on {figures['top1']:.1%} of "
        f"{figures['tokens']} tokens, largest difference {figures['max_abs']:.3g}"
    )
    passed = figures["kl"] <= allowed
    if passed and adapters and change == 0:
        detail = "the adapter changes nothing on these prompts, so they say nothing of it"
        return LogitsAnswer(None, detail, figures)
    return LogitsAnswer(passed, detail, figures)


def lost_share(targets: Sequence[TargetReport], *, merge_aware: bool) -> float:
    """Return which share of the squared change correct rounding loses, 0 to 1.

    Args:
        targets: Size of each change, and how much of it correct rounding holds.
        merge_aware: The rounded experts were trained: nothing of them is lost.
    """
    whole = sum(target.delta_norm**2 for target in targets)
    lost = sum(
        (target.delta_norm * min(abs(1 - target.holdable), 1.0)) ** 2
        for target in targets
        if not (merge_aware and ".experts." in target.module)
    )
    return lost / whole if whole else 0.0


def allowed_divergence(change: float, lost: float) -> float:
    """Return the largest KL of a right file that rounds its weights, in nats a token.

    Args:
        change: KL of the bare base to base + adapter.
        lost: ``lost_share`` of the change.
    """
    return max((_SHARE + lost) * change, _FLOOR)


def allowed_in_mxfp4(change: float, lost: float, noise: float) -> float:
    """Return the largest KL of a right file whose experts were rounded to MXFP4, in nats a token.

    Rounding may have taken a part that the survival report states and the user accepted. What it
    left brings the file nearer than the bare base is, as far as the change stands out of the noise.

    Args:
        change: As in ``allowed_divergence``.
        lost: As in ``allowed_divergence``.
        noise: What rounding costs without any change.
    """
    if change > noise and lost < 1:
        return math.nextafter(change, 0.0)
    return max(change, noise)


def prompt_ids(folder: Path) -> list[list[int]]:
    """Return the fixed prompts as token ids of the checkpoint's own tokenizer."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; the prompts of the check need the tokenizer")
    tokenizer = open_tokenizer(file)
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]


def compare_logits(
    expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """Return mean KL(expected || found) in nats a token, top-1 agreement and largest difference.

    Args:
        expected: ``[tokens, V]`` of each prompt.
        found: The same of the other model.

    Returns:
        The figures by name; where a logit is NaN or infinite, the divergence and the difference are
        as well.
    """
    tokens = sum(len(logits) for logits in expected)
    divergence = agreement = 0.0
    differences = []
    for one, other in zip(expected, found, strict=True):
        log_p, log_q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
        agreement += (one.argmax(-1) == other.argmax(-1)).sum().item()
        differences.append((one - other).abs().max())
    return {
        # Rounding may leave it below 0; max(0.0, nan) would be 0.
        "kl": 0.0 if divergence < 0 else divergence / tokens,
        "top1": agreement / tokens,
        "max_abs": torch.stack(differences).max().item(),
        "tokens": tokens,
    }
