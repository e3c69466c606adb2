"""What is uploaded for a run: the files of the adapter or the merged model, and what explains them.

The files go up from where they lie; only cards, licence and notice are made here. The adapter's
configuration gets the base's public name, because a path of the training machine helps nobody and
tells too much.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from gptoss_tune.checkpoint import Checkpoint
from gptoss_tune.checkpoint.write import to_json
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.card import (
    Facts,
    hub_base_name,
    loss_plot,
    model_card,
    public_recipe,
    read_metrics,
    run_card,
)
from gptoss_tune.export.factors import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, run_record
from gptoss_tune.export.plan import WeightedAdapter
from gptoss_tune.export.travel import NOTICE, change_notice
from gptoss_tune.export.verify import Verification, verify
from gptoss_tune.shipped import shipped


def collect(
    adapter: Adapter,
    base: Checkpoint,
    repo: str,
    *,
    merged: Path | None = None,
    base_name: str | None = None,
    logits: bool = True,
) -> dict[str, Path | bytes]:
    """Return everything to upload by path in the repository, after verifying it.

    Args:
        adapter: The run's adapter, opened and thereby checked against ``base``.
        base: Its base.
        repo: ``owner/name`` of the repository, for the card.
        merged: A merged folder to upload instead of the adapter; verified here.
        base_name: The base's name on the Hub when training used a local folder.
        logits: Compare logits when a merged folder is verified.

    Raises:
        CheckpointError: The merged folder does not hold the adapter; the base has no public name.
    """
    record = run_record(adapter.path)
    recorded = record.get("base", {}).get("name") or adapter.config.get("base_model_name_or_path")
    public_base = hub_base_name(recorded, base_name)
    files: dict[str, Path | bytes]
    if merged is None:
        files = _adapter_files(adapter, public_base)
        said = (
            f"All {2 * len(adapter.targets)} factors of the adapter match the base, tensor by "
            "tensor, and hold no NaN."
        )
        expert_format = None
    else:
        result = verify(merged, base, [WeightedAdapter(adapter)], logits=logits)
        result.require()
        files = {path.name: path for path in sorted(merged.iterdir()) if path.is_file()}
        said = _verification_text(result)
        config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
        expert_format = "mxfp4" if "quantization_config" in config else "bf16"
    facts = Facts(
        repo=repo,
        base=public_base,
        merged=expert_format,
        targets=sorted({module.rpartition(".")[2] for module in adapter.targets}),
        record=record,
        metrics=read_metrics(adapter.path),
        verification=said,
    )
    files.update(_explaining_files(facts))
    files[NOTICE] = _notice(base, adapter, public_base)
    if "LICENSE" not in files:
        files["LICENSE"] = _licence(base)
    return files


def _adapter_files(adapter: Adapter, base_name: str) -> dict[str, Path | bytes]:
    if adapter.swapped:
        raise CheckpointError(
            f"{adapter.path}: its factors are swapped; repair them first with `gptoss-tune adapter "
            f"{adapter.path} --repair --out DIR` and push that"
        )
    config = {**adapter.config, "base_model_name_or_path": base_name}
    return {
        ADAPTER_CONFIG: to_json(config).encode(),
        ADAPTER_WEIGHTS: adapter.path / ADAPTER_WEIGHTS,
    }


def _explaining_files(facts: Facts) -> Mapping[str, bytes]:
    """Return cards, recipe and plot."""
    made = {
        "README.md": model_card(facts),
        "run_card.json": run_card(facts) if facts.record else None,
        "recipe.yaml": public_recipe(facts.record, facts.base),
        "loss.svg": loss_plot(facts.metrics),
    }
    return {name: text.encode() for name, text in made.items() if text is not None}


def _notice(base: Checkpoint, adapter: Adapter, public_base: str) -> bytes:
    before = base.path / NOTICE
    text = before.read_text(encoding="utf-8").rstrip() + "\n\n" if before.is_file() else ""
    return (text + change_notice(public_base, [adapter])).encode()


def _licence(base: Checkpoint) -> Path:
    """Return the base's licence, or the text of Apache-2.0 under which gpt-oss is released."""
    own = base.path / "LICENSE"
    return own if own.is_file() else shipped("data") / "tiny_checkpoint" / "LICENSE"


def _verification_text(result: Verification) -> str:
    """Return the checks as a list."""
    words = {True: "passed", False: "failed", None: "not done"}
    return "\n".join(f"- {c.name}: {words[c.passed]}. {c.detail}" for c in result.checks)
