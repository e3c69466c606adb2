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

from transformers import GptOssConfig

from gptoss_tune.display import without_credentials
from gptoss_tune.errors import CheckpointError, UndecidedError
from gptoss_tune.export.assets import missing_companions
from gptoss_tune.export.device import compute_device
from gptoss_tune.export.merge.steps import WeightedAdapter, is_merge_aware
from gptoss_tune.export.verify.logits import check_logits
from gptoss_tune.export.verify.raw_changes import inspect_whole
from gptoss_tune.export.verify.weights import (
    TargetReport,
    find_nonfinite,
    inspect_target,
    inspect_untouched,
)
from gptoss_tune.run.checkpoints import MANIFEST
from gptoss_tune.weights import Checkpoint, open_checkpoint
from gptoss_tune.weights.gguf.file import is_gguf
from gptoss_tune.weights.hashes import damaged_files

_MAY_DIFFER = {"quantization_config", "torch_dtype", "dtype", "transformers_version", "use_cache"}
_LISTED = 3


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: What was asked.
        passed: True, False, or None when it could not be asked.
        detail: The answer in one sentence.
        figures: Numbers behind it.
        required: Whether it was asked for by name, so that no answer is no success.
        of_server: Whether a server was asked, and not the folder.
    """

    name: str
    passed: bool | None
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)
    required: bool = False
    of_server: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""
        told = ("name", "passed", "detail", "figures")
        return {key: value for key, value in asdict(self).items() if key in told}


@dataclass(frozen=True)
class Verification:
    """All checks of one folder.

    Attributes:
        folder: What was verified.
        checks: The answers.
        targets: What the file holds of every target's change.
        server: Address of the server that was asked, if one was.
    """

    folder: str
    checks: tuple[Check, ...]
    targets: tuple[TargetReport, ...] = ()
    server: str | None = None

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
        red = [check for check in self.checks if check.passed is False]
        if red:
            said = f"{self.folder} does not hold what was trained"
            if all(check.of_server for check in red):
                at = "" if self.server is None else f" at {without_credentials(self.server)}"
                said = f"the server{at} does not serve what {self.folder} holds"
            listed = [f"{check.name}: {check.detail}" for check in red]
            raise CheckpointError(f"{said}:\n  " + "\n  ".join(listed))
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
        folder: A merged checkpoint, or a GGUF, its file or its folder.
        base: What was merged into; without it only the folder itself is checked.
        adapters: What was merged, with the weights of the merge; without them the folder has to be
            the base in another format.
        logits: Also compare logits, which reads base and merged weights once more.
        device: Where to compute.

    Raises:
        CheckpointError, MachineError: ``device`` is none, or is not here.
    """
    compute_device(device)
    if is_gguf(folder):
        from gptoss_tune.export.verify.gguf import verify_gguf

        return verify_gguf(folder, base, adapters, logits=logits, device=device)
    try:
        merged = open_checkpoint(folder)
    except CheckpointError as error:
        return Verification(str(folder), (Check("files", False, str(error)),))
    checks = [
        Check("files", True, f"{len(merged.files)} files whole, {len(merged.names())} tensors"),
        check_hashes(folder),
        check_finite(merged),
        _check_companions(folder, base),
    ]
    if base is None:
        asked = ("config", "untouched tensors", "changes", "logits")
        reason = "not checked: needs the adapter and its base"
        checks += [Check(name, None, reason) for name in asked]
        return Verification(str(folder), tuple(checks))
    checks.append(_check_config(base, merged))
    compared, reports = compare_weights(base, merged, adapters, logits=logits, device=device)
    return Verification(str(folder), (*checks, *compared), tuple(reports))


def compare_weights(
    base: Checkpoint,
    merged: Checkpoint,
    adapters: Sequence[WeightedAdapter],
    *,
    logits: bool,
    device: str,
    tokenizer: Path | None = None,
) -> tuple[list[Check], list[TargetReport]]:
    """Compare the weights of ``merged``, and its logits, with base and adapters.

    Args:
        base: What was merged into.
        merged: The file in question.
        adapters: What was merged.
        logits: Compare logits as well.
        device: Where to compute.
        tokenizer: The folder of the tokenizer; ``None``: that of ``merged``.
    """
    merge_aware, where = is_merge_aware(base, adapters), compute_device(device)
    targets = {module for each in adapters for module in each.adapter.targets}
    whole = {name for each in adapters for name in each.adapter.whole}
    faults = inspect_untouched(base, merged, targets | whole)
    untouched = "every tensor that no adapter targets has the base's value"
    checks = [Check("untouched tensors", not faults, said(faults) or untouched)]
    if whole:
        wrong = inspect_whole(base, merged, adapters)
        held = f"{len(whole)} tensors that the adapter holds beside its factors have its values"
        checks.append(Check("replaced tensors", not wrong, said(wrong) or held))
    reports = [
        inspect_target(base, merged, adapters, module, merge_aware=merge_aware, device=where)
        for module in sorted(targets)
    ]
    if adapters:
        checks.append(_check_changes(reports, adapters))
    if logits:
        answer = check_logits(
            base,
            merged,
            adapters,
            reports,
            merge_aware=merge_aware,
            device=device,
            tokenizer=tokenizer,
        )
        checks.append(Check("logits", answer.passed, answer.detail, answer.figures))
    return checks, reports


def said(faults: list[str]) -> str:
    """Return the first faults in one sentence; empty without any."""
    more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return "; ".join(faults[:_LISTED]) + more


def check_finite(merged: Checkpoint) -> Check:
    """No tensor holds NaN or infinity."""
    bad = [f"NaN or infinity in {name}" for name in find_nonfinite(merged)]
    return Check("finite", not bad, said(bad) or "no NaN, no infinity")


def check_hashes(folder: Path, among: tuple[str, ...] = ()) -> Check:
    """The files are those that were written, bit for bit.

    Args:
        folder: With its manifest.
        among: Look at these alone; nothing: at every file that the manifest names.
    """
    faults = damaged_files(folder, among)
    if faults is None:
        return Check("hashes", None, f"not checked: there is no {MANIFEST}, as a merge writes it")
    return Check("hashes", not faults, said(faults) or f"every file has the hash in {MANIFEST}")


def _check_companions(folder: Path, base: Checkpoint | None) -> Check:
    missing = missing_companions(folder, None if base is None else base.companions)
    missing = [f"{name} is missing" for name in missing]
    return Check("companions", not missing, said(missing) or "tokenizer and chat template present")


def _check_config(base: Checkpoint, merged: Checkpoint) -> Check:
    """The configuration means what the base's means; its format was compared on opening."""
    wanted, found = _meaning(base.config), _meaning(merged.config)
    differences = [
        f"{key} is {found.get(key)!r}, the base has {wanted.get(key)!r}"
        for key in sorted((set(wanted) | set(found)) - _MAY_DIFFER)
        if wanted.get(key) != found.get(key)
    ]
    return Check("config", not differences, said(differences) or "the base's, and fits the tensors")


def _meaning(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as transformers reads it, in whichever release's words it stands."""
    values = {key: value for key, value in config.items() if key not in _MAY_DIFFER}
    return GptOssConfig.from_dict(values).to_dict()


def _check_changes(reports: list[TargetReport], adapters: Sequence[WeightedAdapter]) -> Check:
    faults = [fault for report in reports for fault in report.faults]
    stored = [target.stored for each in adapters for target in each.adapter.targets.values()]
    factors = sum(len(names) for names in stored)
    held = [report.held for report in reports]
    detail = (
        f"all {factors} factors of {len(reports)} weights are in the file, which holds "
        f"{min(held):.1%} to {max(held):.1%} of each change"
    )
    figures = {"factors": factors, "held_least": min(held), "held_most": max(held)}
    return Check("changes", not faults, said(faults) or detail, figures)
