"""The model card and the run card: what a repository on the Hub says about a model.

Everything in them comes from the run's own record; nothing is invented, and what is not known is
said to be not recorded. Paths of the machine that trained stay out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptoss_tune import __version__
from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError
from gptoss_tune.report.plot import Line, picture
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.jsonl import read_lines, refusing
from gptoss_tune.run.record import record_of_adapter
from gptoss_tune.weights.checkpoint import HUB_NAME


@dataclass(frozen=True)
class Facts:
    """What a card is made of.

    Attributes:
        repo: ``owner/name`` of the repository.
        base: Name of the base on the Hub.
        merged: ``"bf16"`` or ``"mxfp4"`` for a merged model, None for an adapter.
        targets: Names of the changed weights, without layers.
        record: ``run.json``; empty when the adapter comes without one.
        metrics: Lines of ``metrics.jsonl``.
        verification: Sentence on what was verified before the upload.
    """

    repo: str
    base: str
    merged: str | None
    targets: Sequence[str]
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    verification: str


def hub_base_name(recorded: str | None, given: str | None) -> str:
    """Return the base's name on the Hub.

    Raises:
        CheckpointError: The training named a local folder, which means nothing to others.
    """
    name = given or recorded or ""
    if not HUB_NAME.fullmatch(name) or Path(name).exists():
        raise CheckpointError(
            f"the base is recorded as '{recorded}', which is no name on the Hub; say which model "
            "it is with --base-name, for example openai/gpt-oss-20b"
        )
    return name


def read_metrics(adapter: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl`` of the run an adapter belongs to."""
    file = RunFolder(adapter.absolute().parent).metrics
    if not file.is_file() or not record_of_adapter(adapter):
        return []
    rows: list[dict[str, Any]] = []
    damaged = refusing(file, "cannot be read as JSON", "remove the line")
    for _, row in read_lines(file, damaged, pass_over_blank=True):
        figures = row.items() if isinstance(row, dict) else ()
        # What is drawn and printed is numbers; a torn or strange line has none.
        rows.append({name: value for name, value in figures if type(value) in (int, float)})
    return rows


def model_card(facts: Facts) -> str:
    """Return ``README.md`` of the repository: metadata for the Hub, then prose."""
    kind = f"merged model ({facts.merged})" if facts.merged else "LoRA adapter"
    parts = [
        f"---\n{yaml.safe_dump(metadata(facts), sort_keys=False)}---",
        f"# {facts.repo.partition('/')[2]}",
        f"A {kind} of [{facts.base}](https://huggingface.co/{facts.base}), fine-tuned with "
        f"gptoss-tune {__version__}. Changed weights: {', '.join(facts.targets)}.",
        "## Use\n\n" + _usage(facts),
        "## Training\n\n" + _training(facts),
        "## Verified before upload\n\n" + facts.verification,
        "## Licence and changes\n\n"
        f"Apache-2.0, as the base. The weights of {facts.base} were changed by fine-tuning; see "
        "`NOTICE`.",
    ]
    return "\n\n".join(parts) + "\n"


def metadata(facts: Facts) -> dict[str, Any]:
    """Return the YAML block that the Hub reads."""
    found: dict[str, Any] = {
        "base_model": facts.base,
        "base_model_relation": "finetune" if facts.merged else "adapter",
        "library_name": "transformers" if facts.merged else "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["gpt-oss", "gptoss-tune", "lora"],
    }
    datasets = [name for name in _data_names(facts.record) if "/" in name]
    if datasets:
        found["datasets"] = datasets
    return found


def run_card(facts: Facts) -> str:
    """Return ``run_card.json``: the figures and versions of the run, without its paths."""
    wanted = ("status", "steps", "loss", "eval_loss", "seconds", "peak_memory_bytes", "environment")
    card = {key: facts.record[key] for key in wanted if key in facts.record}
    fingerprint = facts.record.get("base", {}).get("fingerprint")
    card.update(
        base={"name": facts.base, "fingerprint": fingerprint}, data=_data_names(facts.record)
    )
    return json.dumps(card, indent=2, sort_keys=True) + "\n"


def loss_plot(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Return an SVG of loss over steps, or None with fewer than two points."""
    points = [(m["step"], m["loss"]) for m in metrics if "loss" in m and "step" in m]
    points = [(step, loss) for step, loss in points if math.isfinite(loss)]
    if len(points) < 2:
        return None
    line = Line("training loss", points, "var(--c1)")
    return picture(line, unit="training loss, nats per token")


def public_recipe(record: Mapping[str, Any], base: str) -> str | None:
    """Return the recipe as YAML with the base's public name and without the output folder."""
    recipe = record.get("recipe")
    if not recipe:
        return None
    recipe = json.loads(json.dumps(recipe))
    recipe.setdefault("model", {})["name_or_path"] = base
    recipe.get("train", {}).update(output_dir="runs/reproduction", resume="auto")
    recipe.pop("tracking", None)
    for split in ("train", "eval"):
        for source in recipe.get("data", {}).get(split) or []:
            source["path"] = _public_name(source["path"])
    return yaml.safe_dump(recipe, sort_keys=False)


def _data_names(record: Mapping[str, Any]) -> list[str]:
    """Return the names of the training data; of local files the name alone, not the folder."""
    sources = record.get("recipe", {}).get("data", {}).get("train") or []
    return [_public_name(source["path"]) for source in sources]


def _public_name(path: str) -> str:
    """Return a dataset's name on the Hub as it is, and of a local path the last part."""
    on_hub = HUB_NAME.fullmatch(path) and not Path(path).suffix and not Path(path).exists()
    return path if on_hub else Path(path).name


def _usage(facts: Facts) -> str:
    """Return snippets that load the repository."""
    if facts.merged:
        python = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{facts.repo}", dtype="auto")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{facts.repo}")\n'
        )
        shell = f"vllm serve {facts.repo}\n"
    else:
        python = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, Mxfp4Config\n\n"
            "model = AutoModelForCausalLM.from_pretrained(\n"
            f'    "{facts.base}", dtype="auto", '
            "quantization_config=Mxfp4Config(dequantize=True)\n)\n"
            f'model = PeftModel.from_pretrained(model, "{facts.repo}")\n'
        )
        shell = (
            f"hf download {facts.repo} --local-dir adapter\n"
            f"gptoss-tune adapter adapter --base {facts.base} --for vllm --out adapter-vllm\n"
        )
    return f"```python\n{python}```\n\n```sh\n{shell}```"


def _training(facts: Facts) -> str:
    """Return what the record says about the run."""
    if not facts.record:
        return "Not recorded: the adapter came without the record of its run."
    record = facts.record
    names = _data_names(record)
    rows = [
        ("data", ", ".join(map(_cell, names)) if names else "not recorded"),
        ("licence of the data", "not recorded; see the data's own page"),
        ("steps", _whole(record.get("steps"))),
        ("last training loss", _number(record.get("loss"))),
        ("evaluation loss", _number(record.get("eval_loss"))),
        ("seconds", _number(record.get("seconds"))),
    ]
    libraries = record.get("environment", {}).get("libraries", {})
    known = ", ".join(_cell(f"{name} {version}") for name, version in libraries.items() if version)
    rows.append(("libraries", known or "not recorded"))
    table = "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
    plot = "\n\n![training loss](loss.svg)" if loss_plot(facts.metrics) else ""
    recipe = public_recipe(record, facts.base)
    # Longer than any fence in the recipe's own texts.
    fence = "`" * (2 + max(map(len, ["`", *re.findall("`+", recipe or "")])))
    text = f"\n\nThe recipe, complete:\n\n{fence}yaml\n{recipe}{fence}" if recipe else ""
    return table + plot + text


def _cell(text: str) -> str:
    """Return a stranger's text for a table: on one line, without markup of its own."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", one_line(text))


def _whole(value: Any) -> str:
    return str(value) if type(value) is int else "not recorded"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not recorded"
