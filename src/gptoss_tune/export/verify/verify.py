"""Verification of a merged checkpoint: a list of checks, each green, red or not done.

Works on any folder, whoever merged it. With the base and the adapters at hand it answers fully;
without them it can only say whether the folder is whole, and says that the rest was not checked.
Everything is read tensor by tensor; the logits are computed layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GptOssConfig

from gptoss_tune.errors import CheckpointError, UndecidedError
from gptoss_tune.export.assets import companions
from gptoss_tune.export.merge.steps import WeightedAdapter, is_merge_aware
from gptoss_tune.export.verify.layerwise import LayerwiseModel
from gptoss_tune.export.verify.weights import (
    TargetReport,
    find_nonfinite,
    inspect_target,
    inspect_untouched,
)
from gptoss_tune.harmony.tokenizer_file import open_tokenizer
from gptoss_tune.weights import Checkpoint, open_checkpoint

_MAY_DIFFER = {"quantization_config", "torch_dtype", "dtype", "transformers_version", "use_cache"}
_LISTED = 3
_LOGITS_SHARE = 0.05  # of the divergence that the adapter itself causes
_LOGITS_FLOOR = 2e-3  # nats a token: what rounding weights to bf16 may cost
PROMPTS = (
    "<|start|>user<|message|>What is 17 times 23?<|end|><|start|>assistant",
    "<|start|>user<|message|>Write one sentence about the sea.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>The sea",
    "<|start|>developer<|message|># Instructions\n\nAnswer briefly.<|end|><|start|>user<|message|>"
    "def add(a, b):<|end|><|start|>assistant<|channel|>analysis<|message|>",
)
"""What the logits are compared on."""


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: What was asked.
        passed: True, False, or None when it could not be asked.
        detail: The answer in one sentence.
        figures: Numbers behind it.
        required: Whether it was asked for by name, so that no answer is no success.
    """

    name: str
    passed: bool | None
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)
    required: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "required"}


@dataclass(frozen=True)
class Verification:
    """All checks of one folder.

    Attributes:
        folder: What was verified.
        checks: The answers.
        targets: What the file holds of every target's change.
    """

    folder: str
    checks: tuple[Check, ...]
    targets: tuple[TargetReport, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no check is red, and none that was asked for by name is undecided."""
        return all(
            check.passed or (check.passed is None and not check.required) for check in self.checks
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "folder": self.folder,
            "passed": self.passed,
            "checks": [check.as_dict() for check in self.checks],
            "targets": [asdict(target) for target in self.targets],
        }

    def require(self) -> None:
        """Raise when a check is red, or undecided and asked for by name.

        Raises:
            CheckpointError: Lists every red check.
            UndecidedError: None is red, and what was asked for by name could not be told.
        """
        red = [f"{check.name}: {check.detail}" for check in self.checks if check.passed is False]
        if red:
            raise CheckpointError(
                f"{self.folder} does not hold what was trained:\n  " + "\n  ".join(red)
            )
        open_ = [f"{c.name}: {c.detail}" for c in self.checks if c.passed is None and c.required]
        if open_:
            raise UndecidedError("nothing was proved:\n  " + "\n  ".join(open_))


def verify(
    folder: Path,
    base: Checkpoint | None = None,
    adapters: Sequence[WeightedAdapter] = (),
    *,
    logits: bool = True,
    device: str = "cpu",
) -> Verification:
    """Verify the merged checkpoint in ``folder``.

    Args:
        folder: A merged checkpoint.
        base: What was merged into; without it only the folder itself is checked.
        adapters: What was merged, with the weights of the merge.
        logits: Also compare logits, which reads base and merged weights once more.
        device: Where to compute.
    """
    try:
        merged = open_checkpoint(folder)
    except CheckpointError as error:
        return Verification(str(folder), (Check("files", False, str(error)),))
    checks = [
        Check("files", True, f"{len(merged.files)} files whole, {len(merged.names())} tensors"),
        _check_finite(merged),
        _check_companions(folder),
    ]
    if base is None or not adapters:
        asked = ("config", "untouched tensors", "changes", "logits")
        reason = "not checked: needs the adapter and its base"
        checks += [Check(name, None, reason) for name in asked]
        return Verification(str(folder), tuple(checks))
    merge_aware = is_merge_aware(base, adapters)
    checks.append(_check_config(base, merged))
    targets = {module for each in adapters for module in each.adapter.targets}
    faults = inspect_untouched(base, merged, targets)
    untouched = "every tensor that no adapter targets has the base's bytes"
    checks.append(Check("untouched tensors", not faults, _said(faults) or untouched))
    reports = [
        inspect_target(
            base,
            merged,
            adapters,
            module,
            merge_aware=merge_aware,
            device=torch.device(device),
        )
        for module in sorted(targets)
    ]
    checks.append(_check_changes(reports, adapters))
    if logits:
        checks.append(_check_logits(base, merged, adapters, merge_aware, device))
    return Verification(str(folder), tuple(checks), tuple(reports))


def _said(faults: list[str]) -> str:
    """Return the first faults in one sentence; empty without any."""
    more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return "; ".join(faults[:_LISTED]) + more


def _check_finite(merged: Checkpoint) -> Check:
    bad = [f"NaN or infinity in {name}" for name in find_nonfinite(merged)]
    return Check("finite", not bad, _said(bad) or "no NaN, no infinity")


def _check_companions(folder: Path) -> Check:
    present = {file.name for file in companions(folder)}
    wanted = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    missing = sorted(wanted - present)
    if not any(name.endswith(".jinja") for name in present):
        missing.append("chat_template.jinja")
    missing = [f"{name} is missing" for name in missing]
    return Check("companions", not missing, _said(missing) or "tokenizer and chat template present")


def _check_config(base: Checkpoint, merged: Checkpoint) -> Check:
    """The configuration means what the base's means; its format was compared on opening."""
    wanted, found = _meaning(base.config), _meaning(merged.config)
    differences = [
        f"{key} is {found.get(key)!r}, the base has {wanted.get(key)!r}"
        for key in sorted((set(wanted) | set(found)) - _MAY_DIFFER)
        if wanted.get(key) != found.get(key)
    ]
    return Check(
        "config", not differences, _said(differences) or "the base's, and fits the tensors"
    )


def _meaning(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as transformers reads it, in whichever release's words it stands."""
    values = {key: value for key, value in config.items() if key not in _MAY_DIFFER}
    return GptOssConfig.from_dict(values).to_dict()


def _check_changes(reports: list[TargetReport], adapters: Sequence[WeightedAdapter]) -> Check:
    faults = [fault for report in reports for fault in report.faults]
    factors = sum(2 * len(each.adapter.targets) for each in adapters)
    held = [report.held for report in reports]
    detail = (
        f"all {factors} factors of {len(reports)} weights are in the file, which holds "
        f"{min(held):.1%} to {max(held):.1%} of each change"
    )
    figures = {"factors": factors, "held_least": min(held), "held_most": max(held)}
    return Check("changes", not faults, _said(faults) or detail, figures)


def _check_logits(
    base: Checkpoint,
    merged: Checkpoint,
    adapters: Sequence[WeightedAdapter],
    merge_aware: bool,
    device: str,
) -> Check:
    """Compare base + adapter, as trained, with the merged file and with the bare base."""
    prompts = prompt_ids(merged.path)
    trained = LayerwiseModel(base, adapters, merge_aware=merge_aware, device=device).logits(prompts)
    figures = compare_logits(trained, LayerwiseModel(merged, device=device).logits(prompts))
    bare = compare_logits(trained, LayerwiseModel(base, device=device).logits(prompts))
    figures["kl_base"] = bare["kl"]
    detail = (
        f"KL {figures['kl']:.2e} to base + adapter (the bare base: {bare['kl']:.2e}), top-1 equal "
        f"on {figures['top1']:.1%} of {figures['tokens']} tokens, largest difference "
        f"{figures['max_abs']:.3g}"
    )
    if merged.expert_format == "mxfp4" and not merge_aware:
        # Rounding may have taken a part that the survival report states and the user accepted.
        return Check("logits", figures["kl"] < bare["kl"], detail, figures)
    allowed = max(_LOGITS_SHARE * bare["kl"], _LOGITS_FLOOR)
    return Check("logits", figures["kl"] <= allowed and bare["kl"] > 0, detail, figures)


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
    """Return mean KL(expected || found) in nats a token, top-1 agreement and largest difference."""
    tokens = sum(len(logits) for logits in expected)
    divergence = agreement = 0.0
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
        agreement += (one.argmax(-1) == other.argmax(-1)).sum().item()
        largest = max(largest, (one - other).abs().max().item())
    return {
        "kl": max(0.0, divergence / tokens),
        "top1": agreement / tokens,
        "max_abs": largest,
        "tokens": tokens,
    }
