"""A configuration of TRL's scripts (``trl sft --config FILE``) -> a recipe.

Facts of the format: ``ModelConfig``, ``ScriptArguments`` and the trainers' configurations of TRL,
and the file of huggingface/gpt-oss-recipes. The method is the script's and not in the file; it is
told by settings that only one of them has.
"""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.recipe.convert import schedule, trainer
from gptoss_tune.recipe.convert.draft import Draft, as_list, is_off
from gptoss_tune.recipe.convert.draft_rules import Rule, irrelevant, none, same, table
from gptoss_tune.recipe.convert.lora import LORA_RULES, dropout, scaling, targets
from gptoss_tune.recipe.convert.methods import ROWS, base, preference
from gptoss_tune.recipe.convert.templates import written
from gptoss_tune.recipe.dump import Noted

_LOSSES: Final = {"sigmoid": "dpo", "ipo": "ipo"}
_PREFERENCES: Final = {
    "beta": "beta",
    "rpo_alpha": "sft_weight",
    "label_smoothing": "label_smoothing",
    "desirable_weight": "desirable_weight",
    "undesirable_weight": "undesirable_weight",
}
_OF_PAIRS: Final = ("beta", "loss_type", "precompute_ref_log_probs", "reference_free", "rpo_alpha")
_OF_LABELS: Final = ("desirable_weight", "undesirable_weight")


def draft_trl(draft: Draft) -> None:
    """Convert every key that depends on another."""
    base(draft, "model_name_or_path", "model_revision")
    rows = ROWS[_method(draft)]
    _adapter(draft)
    if draft.has("load_in_4bit") and not is_off(draft.get("load_in_4bit")):
        if draft.options.gpus > 1:
            draft.none("load_in_4bit", "attention in bf16: several GPUs cannot share nf4")
        else:
            note = "the experts are 4 bits anyway"
            draft.converted("load_in_4bit", "model.linear_precision", "nf4", note)
    _data(draft, rows)
    trainer.duration(draft, "num_train_epochs")
    trainer.batch(draft, "per_device_train_batch_size")
    schedule.schedule(draft, "lr_scheduler_type", "linear")
    trainer.optimizer(draft, "optim")
    trainer.precision(draft)
    _dtype(draft)
    trainer.checkpointing(draft)
    trainer.saving(draft, 500)
    trainer.evaluating(draft)
    schedule.best(draft)
    trainer.sharing(draft)
    trainer.tracking(draft)


def _method(draft: Draft) -> str:
    loss = [str(name) for name in as_list(draft.get("loss_type"))]
    # SFT has a loss_type too: nll, dft, chunked_nll.
    of_pairs = any(draft.has(key) for key in _OF_PAIRS if key != "loss_type")
    if any(draft.has(key) for key in _OF_LABELS) or loss == ["kto"]:
        name = "kto"
    elif of_pairs or (loss and not {*loss} <= {"nll", "dft", "chunked_nll"}):
        name = _LOSSES.get(loss[0] if loss else "sigmoid", "")
        if not name or len(loss) > 1:
            raise draft.refuse("loss_type", "sigmoid or ipo", "choose one of them")
    else:
        name = "sft"
    if draft.has("loss_type"):
        if name != "sft":
            draft.converted("loss_type", "method.name", name)
        elif loss == ["dft"]:
            draft.none("loss_type", "the mean loss of the trained tokens")
        else:
            draft.also("loss_type", "method.name: sft")
    elif name != "sft":
        draft.settings["method.name"] = Noted(name, "by its settings; the script is not named")
    preference(draft, name, _PREFERENCES)
    return name


def _adapter(draft: Draft) -> None:
    uses = draft.get("use_peft")
    named = any(draft.has(key) for key in ("lora_r", "lora_target_modules", "lora_alpha"))
    if draft.has("use_peft"):
        if is_off(uses):
            draft.none("use_peft", "LoRA on a frozen base; every weight is trained there")
        else:
            draft.also("use_peft", "adapters on a frozen base: the section lora")
    if is_off(uses) and not (uses is None and named):
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            if draft.has(key):
                draft.irrelevant(key, "without use_peft it has no effect there")
        return
    scaling(draft, "lora_r", usual_rank=16, usual_alpha=32)
    targets(draft, "lora_target_modules", ["q_proj", "v_proj"])
    dropout(draft)


def _data(draft: Draft, rows: str) -> None:
    mixture = draft.get("dataset_mixture")
    mixed = mixture.get("datasets") if isinstance(mixture, dict) else None
    listed = draft.get("datasets") or mixed
    column = draft.get("dataset_text_field", "text")
    templates: dict[str, str] | None = None
    if column not in ("text", "messages") and rows == "conversation":
        templates = {"text": written(column)}
    if draft.has("dataset_text_field"):
        if templates:
            draft.also("dataset_text_field", "columns of data.train")
        else:
            draft.irrelevant("dataset_text_field", "the columns are known")
    if isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed):
        key = "datasets" if draft.has("datasets") else "dataset_mixture"
        sources = [_of_mixture(entry) for entry in listed]
        draft.settings["data.train"] = Noted(sources, key)
        draft.also(
            key, f"data.train: {len(sources)} sources; a column that is chosen there is read"
        )
        if draft.has("dataset_name"):
            draft.irrelevant("dataset_name", f"{key} decides, there as here")
    elif isinstance(draft.get("dataset_mixer"), dict):  # of older handbooks: a share by name
        shares = draft.get("dataset_mixer").items()
        sources = [
            str(name) if share in (1, 1.0) else {"path": str(name), "weight": share}
            for name, share in shares
        ]
        draft.settings["data.train"] = Noted(sources, "dataset_mixer")
        draft.also("dataset_mixer", f"data.train: {len(sources)} sources, their shares as weights")
    elif draft.has("dataset_name"):
        _of_name(draft, templates)
    else:
        raise draft.refuse("dataset_name", "a data set", "name one")
    draft.places["data", "train"] = draft.place(("dataset_name",))


def _of_name(draft: Draft, templates: dict[str, str] | None) -> None:
    path = str(draft.get("dataset_name"))
    source: dict[str, Any] = {"path": path}
    train, test = draft.get("dataset_train_split"), draft.get("dataset_test_split")
    held = test is not None and draft.get("eval_strategy", "no") not in ("no", False)
    for key, name in (("dataset_config", "name"), ("dataset_config_name", "name")):
        if draft.has(key):
            source[name] = str(draft.get(key))
            draft.also(key, f"data.train[0].{name}: {source[name]}")
    if train not in (None, "train"):
        source["split"] = str(train)
    if templates:
        source["columns"] = templates
    draft.also("dataset_name", f"data.train: {path}")
    if draft.has("dataset_train_split"):
        draft.also("dataset_train_split", f"data.train[0].split: {train}")
    entry: Any = path if list(source) == ["path"] else source
    draft.settings["data.train"] = Noted([entry], "dataset_name")
    if draft.has("dataset_test_split"):
        if held:
            draft.settings["data.eval"] = Noted(
                [{**source, "split": str(test)}], "dataset_test_split"
            )
            draft.also("dataset_test_split", f"data.eval[0].split: {test}")
        else:
            draft.irrelevant("dataset_test_split", "nothing is evaluated without eval_strategy")


def _of_mixture(entry: dict[str, Any]) -> Any:
    source: dict[str, Any] = {"path": str(entry.get("id") or entry.get("path"))}
    for theirs, ours in (("config", "name"), ("name", "name"), ("split", "split")):
        if entry.get(theirs) and entry[theirs] != "train":
            source[ours] = str(entry[theirs])
    if isinstance(entry.get("weight"), int | float):
        source["weight"] = entry["weight"]
    return source["path"] if list(source) == ["path"] else source


def _dtype(draft: Draft) -> None:
    for key in ("dtype", "torch_dtype"):
        if not draft.has(key):
            continue
        value = draft.get(key)
        if value in ("bfloat16", "float32"):
            draft.converted(key, "model.dtype", value)
        elif value == "auto":
            draft.irrelevant(key, "bfloat16, as gpt-oss was trained")
        else:
            draft.none(key, "model.dtype: bfloat16, in which gpt-oss was trained")


def _attention(draft: Draft, key: str, value: object) -> None:
    engines = {"eager": "eager", "flex_attention": "flex"}
    if value in engines:
        draft.converted(key, "model.attention", engines[str(value)])
    else:
        draft.irrelevant(key, "model.attention: auto chooses an engine that knows gpt-oss's sinks")


def _quantised(draft: Draft, key: str, value: object) -> None:
    if is_off(value):
        draft.irrelevant(key, "off there, and the default here")
    else:
        draft.none(key, "attention in bf16, experts in MXFP4 as released")


TRL_RULES: Final[dict[str, Rule]] = {
    **trainer.RULES,
    **LORA_RULES,
    "dataset_splits": none("split of each source in data.train: train where none is named"),
    "dataset_configs": none("name of each source in data.train"),
    "max_length": same("data.max_length"),
    "max_seq_length": same("data.max_length"),
    "packing": same("data.packing"),
    "dataset_num_proc": same("data.dataset_num_proc"),
    "attn_implementation": _attention,
    "load_in_4bit": _quantised,
    "load_in_8bit": _quantised,
    **table(
        "only the assistant's messages, or the completion, are trained",
        irrelevant,
        "assistant_only_loss completion_only_loss",
    ),
    **table(
        "packed samples do not see each other, and a batch is padded to its longest row",
        irrelevant,
        "packing_strategy padding_free eval_packing pad_to_multiple_of padding_side "
        "truncation_mode shuffle_dataset dataset_kwargs dataset_batch_size pad_token eos_token",
    ),
    **table(
        "rows are rendered in the harmony format, as gpt-oss is served",
        irrelevant,
        "chat_template_path chat_template formatting_func skip_prepare_dataset "
        "include_for_metrics model_init_kwargs use_vllm ignore_bias_buffers",
    ),
    **table(
        "experts keep MXFP4 as released",
        irrelevant,
        "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage",
    ),
    **table(
        "a data set on the Hub is downloaded; set streaming of the source to read it row by row",
        none,
        "dataset_streaming",
    ),
    **table(
        "pairs are never cut: both branches with the prompt fit data.max_length, or are dropped",
        none,
        "max_prompt_length max_completion_length",
    ),
    **table(
        "log-probabilities of the reference are computed once, and kept",
        irrelevant,
        "precompute_ref_log_probs precompute_ref_batch_size disable_dropout sync_ref_model "
        "generate_during_eval is_encoder_decoder label_pad_token_id padding_value",
    ),
    **table(
        "the reference is the base, or the adapter of lora.init_from",
        none,
        "reference_free ref_model_init_kwargs force_use_ref_model ref_model_mixup_alpha "
        "model_adapter_name ref_adapter_name f_divergence_type use_weighting ld_alpha "
        "discopop_tau loss_weights",
    ),
    **table("held-out losses are written in any case", irrelevant, "benchmarks callbacks "
            "system_prompt_eval eval_on_start mean_token_accuracy"),
    **table(
        "write it as a system message in the rows, or as columns: {system: ...} of a source",
        none,
        "system_prompt",
    ),
}  # fmt: skip
"""Keys of TRL that stand alone."""


def trl_defaults(draft: Draft) -> None:
    """Write what TRL does where its file says nothing."""
    method = draft.settings.get("method.name")
    supervised = method is None or method.value == "sft"
    draft.default("data.max_length", 1024)
    if supervised:
        draft.default("data.too_long", "truncate")
    draft.default("train.learning_rate", 2e-5 if supervised else 1e-6)
    draft.default("train.per_device_train_batch_size", 8)
    draft.default("train.output_dir", "trainer_output")
    if "train.max_steps" not in draft.settings:
        draft.default("train.num_train_epochs", 3)
