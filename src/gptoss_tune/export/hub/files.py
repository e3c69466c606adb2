"""What is uploaded for a run: the files of the adapter or the merged model, and what explains them.

The files go up from where they lie; only cards and notice are made here. The adapter's
configuration gets the base's public name, because a path of the training machine helps nobody and
tells too much; a file that names one all the same is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.adapter_formats import write_adapter
from gptoss_tune.export.assets import NOTICE, change_notice, companions, notice_of
from gptoss_tune.export.hub.base_name import compare_shape, hub_base_name
from gptoss_tune.export.hub.card_text import updated_card
from gptoss_tune.export.hub.licence import licence_of
from gptoss_tune.export.hub.model_card import Facts, loss_plot, model_card, read_metrics, run_card
from gptoss_tune.export.hub.public_recipe import public_recipe
from gptoss_tune.export.hub.push import refuse_places
from gptoss_tune.export.hub.repository import CARD, LOSS_PLOT, TEMPLATES
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.export.verify.verify import Verification, verify
from gptoss_tune.files.atomic import to_json
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.run.checkpoints import MANIFEST
from gptoss_tune.run.folder import RECIPE, RUN_CARD
from gptoss_tune.run.record import record_of_adapter
from gptoss_tune.weights import Checkpoint, open_checkpoint
from gptoss_tune.weights.adapter import Adapter
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gptoss_tune.weights.gguf.file import is_gguf, open_gguf
from gptoss_tune.weights.names import INDEX_NAME

GGUF_SUFFIX = ".gguf"

_MERGE_WRITES = {"config.json", "merge_report.json", INDEX_NAME, MANIFEST, NOTICE, CARD}


def collect(
    adapter: Adapter,
    base: Checkpoint,
    repo: str,
    *,
    merged: Path | None = None,
    base_name: str | None = None,
    logits: bool = True,
    scratch: Path | None = None,
) -> dict[str, Path | bytes]:
    """Return everything to upload by path in the repository, after verifying it.

    Args:
        adapter: The run's adapter, opened and thereby checked against ``base``.
        base: Its base.
        repo: ``owner/name`` of the repository, for the card.
        merged: A merged folder to upload instead of the adapter; verified here.
        base_name: The base's name on the Hub when training used a local folder.
        logits: Compare logits when a merged folder is verified.
        scratch: An empty folder for the copy that PEFT reads of an adapter on chosen experts; it
            has to be there until the upload is done.

    Raises:
        CheckpointError: The merged folder does not hold the adapter; the base has no public name.
    """
    record = record_of_adapter(adapter.path)
    public_base = hub_base_name(base, base_name)
    compared = compare_shape(base, public_base)
    files: dict[str, Path | bytes]
    if merged is None:
        files = _adapter_files(adapter, public_base, scratch)
        said = (
            f"- factors: passed. All {2 * len(adapter.targets)} factors of the adapter match the "
            "base, tensor by tensor, and hold no NaN."
        )
        expert_format = None
    else:
        result = verify(merged, base, [WeightedAdapter(adapter)], logits=logits)
        result.require()
        files = dict(_merged_files(merged))
        said = _verification_text(result)
        expert_format = _expert_format(merged)
    shape = "passed. It has" if compared else "not done. The Hub did not tell"
    said += f"\n- name of the base: {shape} the shape of {public_base}."
    facts = Facts(
        repo=repo,
        base=public_base,
        merged=expert_format,
        gguf=tuple(sorted(name for name in files if name.endswith(GGUF_SUFFIX))),
        targets=sorted({module.rpartition(".")[2] for module in adapter.targets}),
        record=record,
        metrics=read_metrics(adapter.path),
        verification=said,
        licence=licence_of(base.path),
    )
    local_card = files.get(CARD)
    files.update(_explaining_files(facts, local_card if isinstance(local_card, Path) else None))
    files[NOTICE] = _notice(base, adapter, public_base)
    files.update({file.name: file for file in facts.licence.files if file.name not in files})
    # What people wrote by hand may name any folder; what is made here and copied may not.
    made = {name: content for name, content in files.items() if name != CARD or local_card is None}
    places = [base.path, adapter.path.parent, *([merged] if merged else [])]
    refuse_places(made, [Path.home(), *(place.absolute() for place in places)])
    return files


def _adapter_files(
    adapter: Adapter, base_name: str, scratch: Path | None
) -> dict[str, Path | bytes]:
    if adapter.swapped:
        raise CheckpointError(
            f"{adapter.path}: its factors are swapped; repair them first with `gptoss-tune adapter "
            f"{adapter.path} --repair --out DIR` and push that"
        )
    config, folder = adapter.config, adapter.path
    if adapter.choice is not None:
        # Everybody else's PEFT needs factors of all experts.
        assert scratch is not None, "an adapter on chosen experts is written anew"
        folder = scratch / "padded"
        write_adapter(adapter, folder, "peft")
        config = read_object(folder / ADAPTER_CONFIG)
    config = {**config, "base_model_name_or_path": base_name}
    return {ADAPTER_CONFIG: to_json(config).encode(), ADAPTER_WEIGHTS: folder / ADAPTER_WEIGHTS}


def _merged_files(merged: Path) -> Mapping[str, Path]:
    """Return what is uploaded of a merged folder: what a merge writes, by its name.

    Raises:
        CheckpointError: The folder holds something else, which nobody asked to publish.
    """
    if not merged.is_dir():
        raise CheckpointError(
            f"{merged}: is a file; expected the folder that the merge wrote, whose licence and "
            "report go with it"
        )
    files = {path.relative_to(merged).as_posix(): path for path in companions(merged)}
    weights = (GGUF_SUFFIX,) if is_gguf(merged) else (".safetensors", ".jinja")
    listed = [path.name for path in merged.iterdir() if path.name != TEMPLATES]
    listed += [f"{TEMPLATES}/{path.name}" for path in (merged / TEMPLATES).glob("*")]
    for name in sorted(listed):
        if name in _MERGE_WRITES or name.endswith(weights):
            files[name] = inside(merged, name, f"{merged}: has")
        elif name not in files:
            raise CheckpointError(
                f"{merged}: holds '{one_line(name)}', which no merge writes; nothing was "
                "uploaded, move it elsewhere or upload it yourself"
            )
    return files


def _expert_format(merged: Path) -> str:
    """Return the layout of the experts in a merged folder."""
    if not is_gguf(merged):
        return open_checkpoint(merged).expert_format
    packed = any(entry.type == "MXFP4" for entry in open_gguf(merged).tensors.values())
    return "mxfp4" if packed else "bf16"


def _explaining_files(facts: Facts, local_card: Path | None) -> Mapping[str, bytes]:
    """Return cards, recipe and plot; a card that lies in the folder keeps its words."""
    card = model_card(facts)
    if local_card is not None:
        card = updated_card(local_card.read_text("utf-8", "replace"), card, str(local_card))
    made = {
        CARD: card,
        RUN_CARD: run_card(facts) if facts.record else None,
        RECIPE: public_recipe(facts.record, facts.base),
        LOSS_PLOT: loss_plot(facts),
    }
    return {name: text.encode() for name, text in made.items() if text is not None}


def _notice(base: Checkpoint, adapter: Adapter, public_base: str) -> bytes:
    return (notice_of(base.path) + change_notice(public_base, [adapter])).encode()


def _verification_text(result: Verification) -> str:
    """Return the checks as a list."""
    words = {True: "passed", False: "failed", None: "not done"}
    return "\n".join(f"- {c.name}: {words[c.passed]}. {c.detail}" for c in result.checks)
