"""The model card and the run card: what a repository on the Hub says about a model.

Everything in them comes from the run's own record; nothing is invented, and what is not known is
said to be not recorded. Paths of the machine that trained stay out. The metadata, which the Hub
acts on, takes of a record only names of the shape that names on the Hub have.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from gptoss_tune import __version__
from gptoss_tune.display import one_line
from gptoss_tune.export.hub.base_name import is_public
from gptoss_tune.export.hub.card_gguf import gguf_usage
from gptoss_tune.export.hub.card_results import (
    WON,
    chosen_words,
    evaluation_of,
    evaluation_results,
    policies_of,
    stopped_words,
    won,
)
from gptoss_tune.export.hub.card_safety import safety_text
from gptoss_tune.export.hub.card_text import TAG, new_card
from gptoss_tune.export.hub.licence import Licence
from gptoss_tune.export.hub.public_recipe import data_names, datasets_on_hub, public_recipe
from gptoss_tune.grading.policy_table import HEADS, policy_rows
from gptoss_tune.report.parts.plot import Line, picture
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.jsonl import read_lines, refusing
from gptoss_tune.run.method import method_of, reference_words
from gptoss_tune.run.record import prompts_of, record_of_adapter

_MOST_DATASETS = 20
_BEST = ("metric", "goal", "value", "step")
_STOPPED = ("metric", "goal", "best", "best_step", "waited", "stopped", "step", "planned")
_REFERENCE = ("of", "rows", "tokens", "seconds", "cached")
_ENVIRONMENT = ("gptoss_tune", "python", "platform", "git_commit", "processes", "deterministic")


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
        licence: The base's terms.
        gguf: Names of the GGUF files, where the merged model is one.
    """

    repo: str
    base: str
    merged: str | None
    targets: Sequence[str]
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    verification: str
    licence: Licence
    gguf: Sequence[str] = ()


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
    kind = f"GGUF ({facts.merged} experts) of a merged model" if facts.gguf else kind
    parts = [
        f"A {kind} of [{facts.base}](https://huggingface.co/{facts.base}), {_how(facts)} with "
        f"gptoss-tune {__version__}. Changed weights: {', '.join(facts.targets)}.",
        "## Use\n\n" + _usage(facts),
        "## Training\n\n" + _training(facts),
        *_policies(facts),
        *([f"## Safety against the base\n\n{told}"] if (told := safety_text(facts.record)) else []),
        "## Verified before upload\n\n" + facts.verification,
        "## Licence and changes\n\n"
        f"{facts.licence.sentence} The weights of {facts.base} were changed by fine-tuning; see "
        "`NOTICE`.",
    ]
    return new_card(facts.repo.partition("/")[2], metadata(facts), "\n\n".join(parts))


def _how(facts: Facts) -> str:
    """Return by which method the weights were changed."""
    method = method_of(facts.record)
    return f"trained by {method.words}" if method.is_told else "fine-tuned"


def metadata(facts: Facts) -> dict[str, Any]:
    """Return the YAML block that the Hub reads."""
    method = method_of(facts.record)
    licence: dict[str, Any] = {"license": facts.licence.identifier}
    if facts.licence.identifier == "other":
        licence["license_name"] = "see-license"
        licence["license_link"] = facts.licence.files[0].name
    on_hub = datasets_on_hub(facts.record)
    named = [name for name in data_names(facts.record) if name in on_hub and is_public(name)]
    results = evaluation_results(facts.record)
    card = ModelCardData(
        base_model=facts.base,
        library_name="gguf" if facts.gguf else "transformers" if facts.merged else "peft",
        pipeline_tag="text-generation",
        tags=[
            *("gpt-oss", TAG, "lora"),
            *(["gguf"] if facts.gguf else []),
            *([method.name] if method.beyond_sft else []),
            *(["safeguard"] if _is_classifier(facts) else []),
        ],
        datasets=list(dict.fromkeys(named))[:_MOST_DATASETS] or None,
        model_name=facts.repo.partition("/")[2] if results else None,
        eval_results=results or None,
        base_model_relation="finetune" if facts.merged else "adapter",
        **licence,
    )
    return card.to_dict()


def run_card(facts: Facts) -> str:
    """Return ``run_card.json``: the figures and versions of the run, without its paths."""
    wanted = ("status", "steps", "loss", "eval_loss", "seconds", "peak_memory_bytes")
    plain = (str, int, float, bool, type(None))
    card = {k: facts.record[k] for k in wanted if isinstance(facts.record.get(k, ()), plain)}
    told = facts.record.get("environment", {})
    environment = {k: told[k] for k in _ENVIRONMENT if isinstance(told.get(k, ()), plain)}
    environment["libraries"] = dict(_libraries(facts.record))
    if reference := facts.record.get("reference"):
        kept = {k: reference[k] for k in _REFERENCE if isinstance(reference.get(k, ()), plain)}
        card["reference"] = kept
    for part, names in (("best", _BEST), ("early_stopping", _STOPPED)):
        if told_of := facts.record.get(part):
            card[part] = {k: told_of[k] for k in names if isinstance(told_of.get(k, ()), plain)}
    if figures := won(facts.record):
        rewarded = method_of(facts.record).reinforcement
        card["reinforcement" if rewarded else "preferences"] = dict(figures)
    environment["gpus"] = [name for name in told.get("gpus") or [] if _is_text(name)]
    fingerprint = facts.record.get("base", {}).get("fingerprint")
    card.update(
        environment=environment,
        base={"name": facts.base, "fingerprint": fingerprint},
        data=data_names(facts.record),
        recipe=_how_trained(facts.record),
    )
    return json.dumps(_finite(card), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _how_trained(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a later export, or who asks the model, wants to know of the recipe."""
    recipe = record.get("recipe", {})
    exported = {"lora": "merge_aware", "export": "min_survival"}
    found: dict[str, dict[str, Any]] = {
        section: {name: recipe[section][name]}
        for section, name in exported.items()
        if isinstance(recipe.get(section, {}).get(name), bool | float)
    }
    if (method := method_of(record)).beyond_sft:
        found["method"] = {"name": method.name}
    if asked := prompts_of(record):
        found["data"] = asked
    return found


def _finite(value: Any) -> Any:
    """Return a record's value without NaN and infinity, which are not JSON."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _libraries(record: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Return the libraries of a run that have a version."""
    found = record.get("environment", {}).get("libraries", {})
    return [(name, one_line(version)) for name, version in found.items() if _is_text(version)]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def loss_plot(facts: Facts) -> str | None:
    """Return an SVG of loss over steps, or None with fewer than two points."""
    metrics, unit = facts.metrics, method_of(facts.record).loss_unit
    points = [(m["step"], m["loss"]) for m in metrics if "loss" in m and "step" in m]
    points = [(step, loss) for step, loss in points if math.isfinite(loss)]
    if len(points) < 2:
        return None
    line = Line("training loss", points, "var(--c1)")
    return picture(line, unit=f"training loss, {unit}")


def _usage(facts: Facts) -> str:
    """Return snippets that load the repository."""
    if facts.gguf:
        return gguf_usage(facts.repo, facts.gguf, prompts_of(facts.record))
    if facts.merged:
        python = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{facts.repo}", dtype="auto")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{facts.repo}")\n'
            f"{_generate(facts)}"
        )
        shell = f"vllm serve {facts.repo}\n"
    else:
        python = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config\n\n"
            "model = AutoModelForCausalLM.from_pretrained(\n"
            f'    "{facts.base}", dtype="auto", '
            "quantization_config=Mxfp4Config(dequantize=True)\n)\n"
            f'model = PeftModel.from_pretrained(model, "{facts.repo}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{facts.base}")\n'
            f"{_generate(facts)}"
        )
        shell = f"gptoss-tune adapter {facts.repo} --for vllm --out adapter-vllm\n"
    return f"```python\n{python}```\n\n```sh\n{shell}```"


def _is_classifier(facts: Facts) -> bool:
    """Return whether a model judges content by a policy: by its base, or by what it was asked."""
    return "safeguard" in facts.base.lower() or bool(policies_of(facts.record))


def _policies(facts: Facts) -> list[str]:
    """Return the section of a classifier's figures, where the run measured any."""
    found = evaluation_of(facts.record).get("policies")
    rows = [[_cell(name), *cells] for name, *cells in policy_rows(found)]
    if not rows:
        return []
    lines = [[*HEADS], ["---"] * len(HEADS), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return [
        "## Policies\n\nOn the prompts of the run, asked through the chat format, with 95 % "
        "intervals (Wilson). An answer without a label abstains; it counts against recall or "
        f"specificity and in no precision.\n\n{table}"
    ]


_ASKED = '[{"role": "user", "content": "How many r are there in strawberry?"}]'
_JUDGED = (
    "[\n"
    '    {"role": "system", "content": "# Your policy\\n..., and how to answer"},\n'
    '    {"role": "user", "content": "The content to judge."},\n'
    "]"
)


def _generate(facts: Facts) -> str:
    """Return the lines that ask the loaded model something, at the effort it was trained at."""
    effort = prompts_of(facts.record).get("reasoning_effort", "medium")
    return (
        f"messages = {_JUDGED if _is_classifier(facts) else _ASKED}\n"
        "inputs = tokenizer.apply_chat_template(\n"
        f'    messages, add_generation_prompt=True, reasoning_effort="{effort}",\n'
        '    return_dict=True, return_tensors="pt",\n'
        ").to(model.device)\n"
        "answer = model.generate(**inputs, max_new_tokens=512)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:]))\n'
    )


def _training(facts: Facts) -> str:
    """Return what the record says about the run."""
    if not facts.record:
        return "Not recorded: the adapter came without the record of its run."
    record = facts.record
    names = data_names(record)
    rows = [
        ("data", ", ".join(map(_cell, names)) if names else "not recorded"),
        ("licence of the data", "not recorded; see the data's own page"),
        ("method", method_of(record).words or "not recorded"),
        *([("reference", words)] if (words := reference_words(record)) else []),
        *([("experts with an adapter", words)] if (words := _experts(record)) else []),
        ("steps", _whole(record.get("steps"))),
        *([("the adapter is of", words)] if (words := chosen_words(record)) else []),
        *([("stopped early", words)] if (words := stopped_words(record)) else []),
        ("last training loss", _number(record.get("loss"))),
        ("evaluation loss", _number(record.get("eval_loss"))),
        *((WON[name], _number(value)) for name, value in won(record)),
        ("seconds", _number(record.get("seconds"))),
    ]
    known = ", ".join(_cell(f"{name} {version}") for name, version in _libraries(record))
    rows.append(("libraries", known or "not recorded"))
    table = "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
    plot = "\n\n![training loss](loss.svg)" if loss_plot(facts) else ""
    recipe = public_recipe(record, facts.base)
    # Longer than any fence in the recipe's own texts.
    fence = "`" * (2 + max(map(len, ["`", *re.findall("`+", recipe or "")])))
    head = "\n\n<details>\n<summary>The recipe, complete</summary>\n\n"
    text = f"{head}{fence}yaml\n{recipe}{fence}\n\n</details>" if recipe else ""
    return table + plot + text


def _experts(record: Mapping[str, Any]) -> str:
    """Return how many experts of a layer were trained, and what they see; empty for all."""
    found = record.get("chosen_experts") or {}
    counts = {len(one) for one in found.get("layers", {}).values() if isinstance(one, list)}
    if len(counts) != 1 or type(found.get("experts")) is not int:
        return ""
    words = f"{counts.pop()} of {found['experts']} in each layer, the others are the base's"
    shares = [s for s in found.get("share_of_load", {}).values() if isinstance(s, int | float)]
    if not shares:
        return words
    return (
        f"{words}; chosen by the training data, of whose trained tokens they see "
        f"{sum(shares) / len(shares):.0%} (lowest layer {min(shares):.0%})"
    )


def _cell(text: str) -> str:
    """Return a stranger's text for a table: on one line, without markup of its own."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", one_line(text))


def _whole(value: Any) -> str:
    return str(value) if type(value) is int else "not recorded"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not recorded"
