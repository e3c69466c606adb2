"""LLaMA-Factory's configuration -> a recipe.

Facts of the format: its examples (``examples/train_lora``), its arguments
(``llamafactory/hparams``) and the page on data (``data/README.md``). Its trainers are
transformers', whose defaults are written out where ours are others.
"""

from __future__ import annotations

from typing import Final

from gptoss_tune.recipe.convert import schedule, trainer
from gptoss_tune.recipe.convert.draft import Draft, as_list, is_off
from gptoss_tune.recipe.convert.draft_rules import (
    Rule,
    count_of,
    irrelevant,
    none,
    same,
    table,
)
from gptoss_tune.recipe.convert.llamafactory_data import data_sets
from gptoss_tune.recipe.convert.lora import LORA_RULES, dropout, scaling, targets
from gptoss_tune.recipe.convert.methods import ROWS, base, preference

_LOSSES: Final = {"sigmoid": "dpo", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
_PREFERENCES: Final = {
    "pref_beta": "beta",
    "dpo_beta": "beta",
    "kto_beta": "beta",
    "pref_ftx": "sft_weight",
    "dpo_ftx": "sft_weight",
    "dpo_label_smoothing": "label_smoothing",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    "simpo_gamma": "gamma",
}


def draft_llamafactory(draft: Draft) -> None:
    """Convert every key that depends on another."""
    base(draft, "model_name_or_path", "model_revision")
    rows = ROWS[_method(draft)]
    _adapter(draft)
    _quantisation(draft)
    if not draft.has("dataset"):
        raise draft.refuse("dataset", "the data sets to train on", "name them")
    data_sets(draft, "dataset", "data.train", rows)
    if draft.has("eval_dataset"):
        data_sets(draft, "eval_dataset", "data.eval", rows)
    for key, text in (
        ("max_samples", "limit of each source"),
        ("dataset_dir", "where dataset_info.json and its files are"),
    ):
        if draft.has(key):
            draft.also(key, f"{text} in data.train")
    trainer.held_out(draft, "val_size", "eval_dataset")
    _packing(draft)
    trainer.duration(draft, "num_train_epochs")
    trainer.batch(draft, "per_device_train_batch_size")
    schedule.schedule(draft, "lr_scheduler_type", "linear")
    trainer.optimizer(draft, "optim")
    trainer.precision(draft, ("bf16", "pure_bf16", "fp16"))
    _checkpointing(draft)
    trainer.saving(draft, 500)
    trainer.evaluating(draft)
    schedule.best(draft)
    trainer.sharing(draft)
    trainer.tracking(draft)


def _method(draft: Draft) -> str:
    stage, loss = draft.get("stage", "sft"), draft.get("pref_loss", draft.get("dpo_loss"))
    todo = "rewards and what is sampled for them are not trained here"
    if stage not in ("sft", "pt", "dpo", "kto"):
        raise draft.refuse("stage", "sft, pt, dpo or kto", todo)
    name = "kto" if stage == "kto" else _LOSSES.get(loss or "sigmoid") if stage == "dpo" else "sft"
    if name is None:
        raise draft.refuse("pref_loss", "sigmoid, ipo, orpo or simpo", "choose one of them")
    if draft.has("stage"):
        if name == "sft":
            draft.also("stage", "method.name: sft" if stage == "sft" else "text is trained whole")
        else:
            draft.converted("stage", "method.name", name)
    for key in ("pref_loss", "dpo_loss"):
        if draft.has(key):
            if stage == "dpo":
                draft.also(key, f"method.name: {name}")
            else:
                draft.irrelevant(key, f"stage {stage} does not use it")
    # LLaMA-Factory's beta is 0.1 for every loss.
    preference(draft, name, _PREFERENCES, {"beta": 0.1, "gamma": 0.5})
    return name


def _adapter(draft: Draft) -> None:
    kind = draft.get("finetuning_type", "lora")
    if draft.has("finetuning_type"):
        if kind == "lora":
            draft.also("finetuning_type", "adapters on a frozen base: the section lora")
        else:
            draft.none(
                "finetuning_type",
                "LoRA on a frozen base, attention and all experts: a learning rate ten times as "
                "high is usual" if kind == "full" else "LoRA on a frozen base",
            )  # fmt: skip
    if kind != "lora":
        for key in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target"):
            if draft.has(key):
                draft.irrelevant(key, f"finetuning_type {kind} does not use it")
        return
    scaling(draft, "lora_rank", usual_rank=8, usual_alpha=None)
    targets(draft, "lora_target", "all")
    dropout(draft)


def _quantisation(draft: Draft) -> None:
    key, kind = "quantization_bit", draft.get("quantization_bit")
    if kind is None:
        return
    if count_of(kind) == 4 and draft.options.gpus == 1:
        draft.converted(key, "model.linear_precision", "nf4", "the experts are 4 bits anyway")
    else:
        draft.none(key, "attention in bf16, experts in MXFP4 as released")


def _packing(draft: Draft) -> None:
    packs = [key for key in ("packing", "neat_packing") if not is_off(draft.get(key))]
    for key in ("packing", "neat_packing"):
        if not draft.has(key):
            continue
        if key not in packs:
            draft.irrelevant(key, "off there, and the default here")
        elif key == packs[0]:
            note = "samples of a row do not see each other" if key == "packing" else None
            draft.converted(key, "data.packing", True, note)
        else:
            draft.also(key, "data.packing: samples of a row never see each other")


def _checkpointing(draft: Draft) -> None:
    key = "disable_gradient_checkpointing"
    if draft.has(key) and not is_off(draft.get(key)):
        draft.converted(key, "train.activation_checkpointing", "none")
    elif draft.has(key):
        draft.irrelevant(key, "activations are checkpointed, the default here too")
    if draft.has("use_unsloth_gc"):
        if is_off(draft.get("use_unsloth_gc")):
            draft.irrelevant("use_unsloth_gc", "off there, and the default here")
        else:
            draft.converted("use_unsloth_gc", "train.activation_checkpointing", "offload")
    for other in ("gradient_checkpointing", "activation_offloading"):
        if draft.has(other):
            draft.irrelevant(other, f"there {key} decides")


def _flash(draft: Draft, key: str, value: object) -> None:
    if value == "disabled":
        draft.converted(key, "model.attention", "eager")
    else:
        draft.irrelevant(key, "model.attention: auto chooses an engine that knows gpt-oss's sinks")


def _history(draft: Draft, key: str, value: object) -> None:
    if is_off(value):
        draft.irrelevant(key, "off: every turn is trained, the default here too")
    else:
        draft.converted(key, "data.turns", "last")


def _mixing(draft: Draft, key: str, value: object) -> None:
    if value == "concat":
        draft.also(key, "data.train: one source after the other, drawn together")
    else:
        draft.none(key, "sources are drawn together; weight of a source says how often it is used")


LLAMAFACTORY_RULES: Final[dict[str, Rule]] = {
    **trainer.RULES,
    **LORA_RULES,
    "cutoff_len": same("data.max_length"),
    "preprocessing_num_workers": same("data.dataset_num_proc"),
    "flash_attn": _flash,
    "mask_history": _history,
    "mix_strategy": _mixing,
    "interleave_probs": lambda draft, key, value: draft.none(
        key, f"weight of each source: {', '.join(map(str, as_list(value)))} there"
    ),
    "train_on_prompt": none("only the assistant's messages are trained"),
    **table(
        "rows are rendered in the harmony format, as gpt-oss is served",
        irrelevant,
        "template tool_format use_fast_tokenizer split_special_tokens default_system "
        "enable_thinking reasoning_effort efficient_eos new_special_tokens_config "
        "init_special_tokens",
    ),
    **table(
        "the cache of renderings finds its own place, and rows are read one by one",
        irrelevant,
        "tokenized_path preprocessing_batch_size buffer_size streaming cache_dir "
        "ignore_pad_token_for_loss data_shared_file_system disable_shuffling media_dir",
    ),
    **table(
        "gptoss_kernels compute attention, experts, loss and norms",
        irrelevant,
        "use_unsloth use_reentrant_gc upcast_layernorm upcast_lmhead_output use_kt "
        "use_v1_kernels use_mca use_triton offload_folder print_param_status",
    ),
    **table(
        "the router stays frozen",
        none,
        "moe_aux_loss_coef mixture_of_depths shift_attn rope_scaling train_from_scratch",
    ),
    **table("experts keep MXFP4 as released", irrelevant, "quantization_method quantization_type "
            "double_quantization quantization_device_map"),
    **table(
        "answers are generated by the section evaluation, `gptoss-tune chat` and `evaluate`",
        irrelevant,
        "infer_backend infer_dtype eval_num_beams temperature top_p top_k max_new_tokens "
        "eval_on_each_dataset vllm_maxlen vllm_gpu_util vllm_enforce_eager use_kv_cache "
        "export_dir export_size export_device export_legacy_format export_hub_model_id",
    ),
    **table(
        "the reference is the base, or the adapter of lora.init_from",
        none,
        "ref_model ref_model_adapters ref_model_quantization_bit ld_alpha pref_bco_weight",
    ),
    **table(
        "of a method that is not trained here",
        none,
        "reward_model reward_model_type reward_model_adapters ppo_epochs ppo_target "
        "ppo_buffer_size ppo_score_norm ppo_whiten_rewards use_galore use_apollo use_badam "
        "use_adam_mini use_muon use_dft_loss freeze_trainable_layers freeze_trainable_modules "
        "freeze_extra_modules galore_rank galore_target galore_scale apollo_rank apollo_target "
        "badam_mode badam_switch_mode badam_switch_interval oft_rank oft_block_size oft_target",
    ),
    **table(
        "set tracking.report_to to swanlab, which its own variables set",
        none,
        "use_swanlab swanlab_project swanlab_run_name swanlab_workspace swanlab_mode",
    ),
    **table(
        "gpt-oss reads text alone",
        none,
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model image_max_pixels "
        "image_min_pixels video_max_pixels video_min_pixels video_fps video_maxlen",
    ),
    **table(
        "`gptoss-tune launch` writes job files of clusters",
        none,
        "ray_run_name ray_storage_path ray_num_workers placement_strategy resources_per_worker "
        "ray_init_kwargs",
    ),
}  # fmt: skip
"""Keys of LLaMA-Factory that stand alone."""


def llamafactory_defaults(draft: Draft) -> None:
    """Write what LLaMA-Factory does where its file says nothing."""
    draft.default("data.max_length", 2048)
    if draft.get("stage", "sft") == "sft":
        draft.default("data.too_long", "truncate")
    draft.default("train.learning_rate", 5e-5)
    draft.default("train.per_device_train_batch_size", 8)
    draft.default("train.output_dir", "saves")
    if "train.max_steps" not in draft.settings:
        draft.default("train.num_train_epochs", 3)
