"""Axolotl's configuration -> a recipe.

Facts of the format: its own examples for gpt-oss (``examples/gpt-oss``) and its schemas
(``axolotl/utils/schemas``). What it does where a key is absent is written out where we would do
otherwise.
"""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.recipe.convert import schedule, trainer
from gptoss_tune.recipe.convert.axolotl_data import sources
from gptoss_tune.recipe.convert.draft import Draft, as_list, is_off, switch
from gptoss_tune.recipe.convert.draft_rules import Rule, irrelevant, none, same, table
from gptoss_tune.recipe.convert.lora import LORA_RULES, dropout, scaling, targets
from gptoss_tune.recipe.convert.methods import ROWS, base, preference
from gptoss_tune.recipe.dump import Noted

_TRACKING: Final = {
    "wandb_project": "tracking.project",
    "wandb_name": "tracking.run_name",
    "wandb_run_id": "tracking.run_name",
    "wandb_entity": "tracking.entity",
    "wandb_run_group": "tracking.group",
    "wandb_tags": "tracking.tags",
    "trackio_project_name": "tracking.project",
    "trackio_run_name": "tracking.run_name",
}
_TRACKERS: Final = {
    "use_tensorboard": "tensorboard",
    "use_mlflow": "mlflow",
    "use_comet": "comet_ml",
    "use_swanlab": "swanlab",
}
_PREFERENCES: Final = {
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "orpo_alpha": "beta",
    "rpo_alpha": "sft_weight",
    "cpo_alpha": "sft_weight",
    "simpo_gamma": "gamma",
    "dpo_label_smoothing": "label_smoothing",
    "kto_desirable_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight",
}


def draft_axolotl(draft: Draft) -> None:
    """Convert every key of the file."""
    base(draft, "base_model", "revision_of_model")
    _precision_of_base(draft)
    rows = ROWS[_method(draft)]
    _adapter(draft)
    for key, setting in (
        ("datasets", "data.train"),
        ("pretraining_dataset", "data.train"),
        ("test_datasets", "data.eval"),
    ):
        if not draft.has(key):
            continue
        if setting in draft.settings:
            draft.none(key, "one list of training data: add its entries to data.train")
        else:
            sources(draft, key, setting, rows)
    if "data.train" not in draft.settings:
        raise draft.refuse("datasets", "a list of data sets", "add one, with a path and a type")
    trainer.held_out(draft, "val_set_size", "test_datasets")
    trainer.duration(draft, "num_epochs")
    trainer.batch(draft, "micro_batch_size")
    schedule.schedule(draft, "lr_scheduler", "cosine")
    trainer.optimizer(draft, "optimizer")
    trainer.precision(draft, ("bf16", "bfloat16", "fp16", "float16"))
    trainer.checkpointing(draft)
    trainer.saving(draft, None)
    trainer.evaluating(draft)
    schedule.best(draft)
    trainer.sharing(draft)
    _tracking(draft)


def _precision_of_base(draft: Draft) -> None:
    four, eight, kind = "load_in_4bit", "load_in_8bit", "model_quantization_config"
    setting = "model.experts_precision"
    if draft.has(kind):
        draft.converted(kind, setting, "mxfp4", "packed as released")
        draft.settings.pop(setting)  # the default
    kwargs = "model_quantization_config_kwargs"
    if draft.has(kwargs):
        draft.irrelevant(
            kwargs, "experts stay packed and are decoded when used: the same values, less memory"
        )
    if draft.has(four):
        if is_off(draft.get(four)):
            draft.irrelevant(four, "switched off there, and the default here")
        elif draft.options.gpus > 1:
            draft.none(four, "attention in bf16, experts in MXFP4: several GPUs cannot share nf4")
        else:
            draft.converted(four, "model.linear_precision", "nf4", "the experts are 4 bits anyway")
    if draft.has(eight):
        none("attention in bf16, experts in MXFP4")(draft, eight, draft.get(eight))


def _method(draft: Draft) -> str:
    name = draft.get("rl")
    for key in ("reward_model", "process_reward_model"):
        if not is_off(draft.get(key)):
            raise draft.refuse(key, "no reward model", "rewards are not trained here")
    if name is None or is_off(name):
        if "rl" in draft.document.values:
            draft.irrelevant("rl", "no method of preferences: supervised fine-tuning")
        preference(draft, "sft", _PREFERENCES)
        return "sft"
    if name not in ROWS:
        raise draft.refuse(
            "rl", "dpo, ipo, simpo, orpo or kto", "remove it to convert the rest for supervised "
            "fine-tuning; what samples and rewards answers is not trained here"
        )  # fmt: skip
    draft.converted("rl", "method.name", name)
    # Its SimPO is TRL's CPO with another loss, whose own loss of the chosen answer stays in.
    preference(draft, name, _PREFERENCES, {"sft_weight": 1.0} if name == "simpo" else None)
    return name


def _adapter(draft: Draft) -> None:
    kind = draft.get("adapter")
    if kind in ("lora", "qlora"):
        draft.also("adapter", "adapters on a frozen base: the section lora")
    elif kind is not None and not is_off(kind):
        draft.none("adapter", "LoRA on a frozen base, see the section lora")
    else:
        if "adapter" in draft.document.values:
            draft.none(
                "adapter",
                "every weight is trained there; here LoRA on attention and all experts: a learning "
                "rate ten times as high is usual",
            )
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_linear"):
            if draft.has(key):
                draft.irrelevant(key, "without an adapter it has no effect there")
        return
    scaling(draft, "lora_r", usual_rank=8, usual_alpha=8)
    targets(draft, "lora_target_modules", None)
    dropout(draft)


def _tracking(draft: Draft) -> None:
    mode = draft.get("wandb_mode")
    wandb = (draft.has("wandb_project") or switch(draft.get("use_wandb"))) and mode != "disabled"
    trackio = draft.has("trackio_project_name")
    if wandb:
        how = "offline" if mode == "offline" else "online"
        draft.settings["tracking.wandb"] = Noted(how, "wandb_project")
    if trackio:
        draft.settings["tracking.trackio"] = Noted("local", "trackio_project_name")
    others = [name for key, name in _TRACKERS.items() if not is_off(draft.get(key))]
    if others:
        draft.settings["tracking.report_to"] = Noted(others, "use_...")
    for key, setting in _TRACKING.items():
        if not draft.has(key):
            continue
        wanted = trackio if key.startswith("trackio") else wandb
        if not wanted or setting in draft.settings:
            why = "no such tracker is asked for" if not wanted else f"{setting} is set already"
            draft.irrelevant(key, why)
        elif key == "wandb_tags":
            draft.converted(key, setting, as_list(draft.get(key)))
        else:
            draft.converted(key, setting, str(draft.get(key)))
    for key in ("use_wandb", "wandb_mode", *_TRACKERS):
        if not draft.has(key):
            continue
        if key in _TRACKERS and not is_off(draft.get(key)):
            draft.also(key, f"tracking.report_to: {_TRACKERS[key]}")
        elif key not in _TRACKERS and wandb:
            draft.also(key, "tracking.wandb")
        else:
            draft.irrelevant(key, "no such tracker is asked for")


def _trained_prompts(draft: Draft, key: str, value: Any) -> None:
    if is_off(value):
        draft.irrelevant(key, "off: only the assistant's messages are trained")
    else:
        draft.none(key, "only the assistant's messages are trained")


_ATTENTION = "model.attention: auto chooses an engine that knows gpt-oss's sinks"

AXOLOTL_RULES: Final[dict[str, Rule]] = {
    **trainer.RULES,
    **LORA_RULES,
    "sequence_len": same("data.max_length"),
    "sample_packing": same("data.packing"),
    "train_on_inputs": _trained_prompts,
    "dataset_processes": same("data.dataset_num_proc"),
    "dataset_num_proc": same("data.dataset_num_proc"),
    "eager_attention": lambda draft, key, value: (
        draft.irrelevant(key, _ATTENTION)
        if is_off(value)
        else draft.converted(key, "model.attention", "eager")
    ),
    "flex_attention": lambda draft, key, value: (
        draft.irrelevant(key, _ATTENTION)
        if is_off(value)
        else draft.converted(key, "model.attention", "flex")
    ),
    "attn_implementation": lambda draft, key, value: (
        draft.converted(key, "model.attention", "eager")
        if value == "eager"
        else draft.irrelevant(key, _ATTENTION)
    ),
    "excess_length_strategy": lambda draft, key, value: (
        draft.converted(key, "data.too_long", value)
        if value in ("drop", "truncate")
        else draft.none(key, "data.too_long: drop")
    ),
    **table(
        _ATTENTION,
        irrelevant,
        "flash_attention sdp_attention xformers_attention s2_attention flash_attn_cross_entropy "
        "flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp flash_optimum sage_attention "
        "flex_attn_compile_kwargs",
    ),
    **table(
        "packed samples do not see each other, and a batch is padded to its longest row",
        irrelevant,
        "pad_to_sequence_len eval_sample_packing sample_packing_group_size "
        "sample_packing_bin_size sample_packing_sequentially multipack_real_batches "
        "pretrain_multipack_attn pretrain_multipack_buffer_size batch_flattening "
        "pretraining_sample_concatenation",
    ),
    **table(
        "rows are rendered in the harmony format, whose tokens gpt-oss has",
        irrelevant,
        "chat_template chat_template_jinja special_tokens eot_tokens added_tokens_overrides "
        "tokenizer_type tokenizer_config tokenizer_use_fast tokenizer_legacy model_type "
        "base_model_config cls_model_config tokenizer_save_jinja_files "
        "tokenizer_use_mistral_common processor_type fix_untrained_tokens is_llama_derived_model "
        "is_mistral_derived_model is_qwen_derived_model is_falcon_derived_model",
    ),
    **table(
        "write it as a system message in the rows, or as columns: {system: ...} of a source",
        none,
        "default_system_message",
    ),
    **table(
        "the cache of renderings finds its own place",
        irrelevant,
        "dataset_prepared_path dataset_keep_in_memory skip_prepare_dataset dataset_shard_num "
        "dataset_shard_idx shuffle_merged_datasets dataset_exact_deduplication "
        "shuffle_before_merging_datasets streaming",
    ),
    **table(
        "gptoss_kernels compute experts, loss and norms",
        irrelevant,
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel unsloth_cross_entropy_loss "
        "unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope "
        "experimental_skip_move_to_device cut_cross_entropy liger_rope liger_rms_norm "
        "liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy "
        "embeddings_skip_upcast llama4_linearized_experts qlora_sharded_model_loading "
        "gpu_memory_limit max_memory gc_steps use_scattermoe experts_implementation",
    ),
    **table(
        "gradients and weights are not sent: metrics alone",
        none,
        "wandb_watch wandb_log_model trackio_space_id",
    ),
    **table(
        "a tracker of tracking.report_to is set by its library's own variables",
        none,
        "mlflow_tracking_uri mlflow_experiment_name mlflow_run_name comet_project_name "
        "comet_workspace comet_experiment_config comet_mode hf_mlflow_log_artifacts gradio_title "
        "use_otel_metrics swanlab_project swanlab_experiment_name swanlab_description swanlab_mode "
        "swanlab_workspace swanlab_log_model swanlab_log_completions",
    ),
    **table(
        "experts keep MXFP4 as released, attention bf16 or nf4",
        none,
        "gptq qat quantization fp8 quantize_moe_experts bnb_config_kwargs llmcompressor",
    ),
    **table(
        "attention and experts are adapted in the layers of lora.layers; the rest stays frozen",
        none,
        "unfrozen_parameters lisa_n_layers lisa_step_interval lisa_layers_attribute reinit_weights "
        "full_finetune",
    ),
    **table(
        "the base's config.json is taken as it is",
        none,
        "model_config overrides_of_model_config overrides_of_model_kwargs num_labels rope_scaling",
    ),
    **table(
        "guard.loss_spike warns of it, and guard stops a run that computes NaN",
        none,
        "loss_watchdog_threshold loss_watchdog_patience",
    ),
    **table(
        "answers are graded by the section evaluation",
        none,
        "do_causal_lm_eval eval_causal_lm_metrics eval_max_new_tokens eval_table_size "
        "do_bench_eval bench_dataset bench_split",
    ),
    **table(
        "pairs are never cut: both branches with the prompt fit data.max_length, or are dropped",
        none,
        "max_prompt_len max_completion_len dpo_use_weighting dpo_use_logits_to_keep "
        "precompute_ref_log_probs min_sample_len",
    ),
    **table(
        "sequences are not split over GPUs; activation_checkpointing: offload holds 131,072 tokens",
        none,
        "sequence_parallel_degree context_parallel_size heads_k_stride ring_attn_func "
        "tensor_parallel_size expert_parallel_size dp_shard_size dp_replicate_size",
    ),
}
"""Keys of Axolotl that stand alone."""


def axolotl_defaults(draft: Draft) -> None:
    """Write what Axolotl does where its file says nothing."""
    draft.default("data.max_length", 512)
    draft.default("train.output_dir", "model-out")
    if "train.max_steps" not in draft.settings:
        draft.default("train.num_train_epochs", 1)
