"""What Axolotl, LLaMA-Factory and TRL share: the words of transformers' ``TrainingArguments``.

Each function deals with keys that depend on each other; ``RULES`` has those that stand alone.
"""

from __future__ import annotations

from typing import Final, get_args

from gptoss_tune.recipe.convert.draft import Draft, as_list, is_off, switch
from gptoss_tune.recipe.convert.draft_rules import (
    Rule,
    as_number,
    count_of,
    irrelevant,
    none,
    same,
    table,
)
from gptoss_tune.recipe.dump import Noted
from gptoss_tune.recipe.schema import Tracker

_OPTIMIZERS: Final = {
    **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "adamw_torch_8bit"), "adamw_8bit"),
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_TRACKERS: Final = {"comet": "comet_ml", "azureml": "azure_ml"}
_STEPS_OF_EPOCH: Final = "steps of an epoch are not known before the data are read"


def duration(draft: Draft, epochs: str) -> None:
    """Convert how long is trained: steps win where both are set, as they do there."""
    steps = count_of(draft.get("max_steps", -1))
    counted = isinstance(steps, int) and steps > 0
    if draft.has("max_steps"):
        if counted:
            draft.converted("max_steps", "train.max_steps", steps)
        else:
            draft.irrelevant("max_steps", "not above 0: epochs decide")
    if draft.has(epochs):
        if counted:
            draft.irrelevant(epochs, "max_steps decides, there as here")
        else:
            draft.converted(epochs, "train.num_train_epochs", as_number(draft.get(epochs)))


def optimizer(draft: Draft, key: str) -> None:
    """Convert the optimizer; FSDP2 can only spread the one with fp32 moments."""
    said = draft.get(key)
    if said is None:
        return
    if _spread(draft) and _OPTIMIZERS.get(said, "adamw") != "adamw":
        draft.none(key, "train.optim: adamw, whose moments fsdp2 spreads over the GPUs")
    elif said in _OPTIMIZERS:
        draft.converted(key, "train.optim", _OPTIMIZERS[said])
    else:
        draft.none(key, "train.optim: adamw; look at the learning rate, which was for another")


def batch(draft: Draft, rows: str) -> None:
    """Convert the rows of a step: at a time, accumulated, or in all."""
    key, total = "gradient_accumulation_steps", count_of(draft.get("batch_size"))
    if draft.has(rows):
        draft.converted(rows, "train.per_device_train_batch_size", count_of(draft.get(rows)))
    if draft.has(key):
        draft.converted(key, f"train.{key}", count_of(draft.get(key)))
    if rows == "micro_batch_size" and draft.has("batch_size"):  # Axolotl's rows of a whole step
        each = count_of(draft.get(rows, 1))
        if draft.has(key) or not (isinstance(total, int) and isinstance(each, int) and each > 0):
            draft.irrelevant("batch_size", "gradient_accumulation_steps decides")
        else:
            whole = max(1, total // (each * draft.options.gpus))
            draft.converted("batch_size", f"train.{key}", whole, "rows of a step")


def saving(draft: Draft, usual: int | None) -> None:
    """Convert when checkpoints are written."""
    strategy, steps = draft.get("save_strategy"), count_of(draft.get("save_steps"))
    text = f"the adapter is always kept at the end; {_STEPS_OF_EPOCH}: set train.save_steps"
    if draft.has("saves_per_epoch"):
        none(text)(draft, "saves_per_epoch", draft.get("saves_per_epoch"))
    if strategy is not None:
        if strategy == "steps":
            draft.also("save_strategy", "train.save_steps says when")
        elif strategy == "no" or is_off(strategy):
            draft.irrelevant("save_strategy", "no checkpoint is written without train.save_steps")
        else:
            draft.none("save_strategy", text)
    if steps is not None:
        if strategy not in (None, "steps"):
            draft.irrelevant("save_steps", "save_strategy decides")
        elif isinstance(steps, float):
            draft.none("save_steps", f"a share of the run; {text}")
        else:
            draft.converted("save_steps", "train.save_steps", steps)
    elif usual is not None and strategy in (None, "steps"):
        draft.default("train.save_steps", usual)


def held_out(draft: Draft, key: str, files: str) -> None:
    """Convert the share of the rows that is held out.

    Args:
        draft: What is converted.
        key: The share's key.
        files: The key that names held-out files instead.
    """
    value = as_number(draft.get(key, 0))
    if not draft.has(key):
        return
    if not value:
        draft.irrelevant(key, "nothing is held out")
    elif "data.eval" in draft.settings:
        draft.irrelevant(key, f"{files} {'are' if files.endswith('s') else 'is'} held out")
    elif isinstance(value, int | float) and value >= 1:
        draft.none(key, f"a number of rows: set data.eval_fraction to {value:g} / your rows")
    else:
        draft.converted(key, "data.eval_fraction", value, "drawn by train.seed")


def evaluating(draft: Draft) -> None:
    """Convert when held-out data are evaluated; called when it is known whether there are any."""
    any_held = "data.eval" in draft.settings or "data.eval_fraction" in draft.settings
    nothing = "nothing is held out"
    names = ("eval_strategy", "evaluation_strategy")
    strategy = next((draft.get(name) for name in names if draft.has(name)), None)
    at_end = f"there is always an evaluation at the end; {_STEPS_OF_EPOCH}: set train.eval_steps"
    for name in names:
        if not draft.has(name):
            continue
        if not any_held:
            draft.irrelevant(name, nothing)
        elif draft.get(name) == "steps":
            draft.also(name, "train.eval_steps says when")
        elif draft.get(name) == "no" or is_off(draft.get(name)):
            draft.none(
                name, "there is always an evaluation at the end; to have none, hold out none"
            )
        else:
            draft.none(name, at_end)
    if draft.has("evals_per_epoch"):
        if any_held:
            none(at_end)(draft, "evals_per_epoch", draft.get("evals_per_epoch"))
        else:
            draft.irrelevant("evals_per_epoch", nothing)
    steps = count_of(draft.get("eval_steps"))
    if steps is None:
        return
    if not any_held:
        draft.irrelevant("eval_steps", nothing)
    elif strategy not in (None, "steps"):
        draft.irrelevant("eval_steps", f"{'eval_strategy'} decides")
    elif isinstance(steps, float):
        draft.none("eval_steps", f"a share of the run; {at_end}")
    else:
        draft.converted("eval_steps", "train.eval_steps", steps)


def precision(draft: Draft, keys: tuple[str, ...] = ("bf16", "fp16")) -> None:
    """Convert the compute dtype; bf16 is the default, fp16 is not trained in."""
    halves = [key for key in keys if draft.has(key) and switch(draft.get(key))]
    for key in keys:
        if not draft.has(key):
            continue
        value = draft.get(key)
        if key.startswith(("fp16", "float16")):
            none("model.dtype: bfloat16, in which gpt-oss was trained")(draft, key, value)
        elif switch(value):
            draft.converted(key, "model.dtype", "bfloat16")
        elif halves:
            draft.irrelevant(key, f"{halves[0]} decides")
        else:
            draft.converted(key, "model.dtype", "float32", "no half precision is asked for")


def checkpointing(draft: Draft) -> None:
    """Convert activation checkpointing, and whether what it keeps is offloaded."""
    key, offload = "gradient_checkpointing", "activation_offloading"
    setting, value = "train.activation_checkpointing", draft.get("gradient_checkpointing")
    offloads = draft.has(offload) and not is_off(draft.get(offload))
    if value is None and not offloads:
        if draft.has(offload):
            draft.irrelevant(offload, "switched off there, and the default here")
        return
    how = "none" if is_off(value) and not offloads else "full"
    if offloads or value in ("offload", "unsloth", "offload_disk"):
        how = "offload"
    first = key if value is not None else offload
    draft.converted(first, setting, how)
    if first == key and draft.has(offload):
        if offloads:
            draft.also(offload, f"{setting}: {how}")
        else:
            draft.irrelevant(offload, f"{setting} says so")


def sharing(draft: Draft) -> None:
    """Convert DeepSpeed and FSDP to how several GPUs share the model."""
    keys = [
        key for key in draft.document.values if key == "deepspeed" or key.startswith("fsdp")
    ]  # fsdp_config with all below it is one key
    wanted = [key for key in keys if not is_off(draft.get(key)) and key != "fsdp_version"]
    strategy = "fsdp2" if _spread_wanted(draft) else "ddp"
    gpus = draft.options.gpus
    for key in keys:
        if key not in wanted and not (wanted and key == "fsdp_version" and draft.has(key)):
            draft.irrelevant(key, "not set" if not draft.has(key) else "nothing is shared")
        elif gpus == 1:
            draft.irrelevant(
                key, "one GPU has nothing to share; convert again with --gpus N for several"
            )
        elif key == wanted[0]:
            note = f"over {gpus} GPUs"
            draft.converted(key, "distributed.strategy", strategy, note)
        else:
            draft.also(key, f"distributed.strategy: {strategy}")
    if gpus > 1:
        draft.settings["distributed.num_processes"] = Noted(gpus, "--gpus")


def tracking(draft: Draft, usual: str = "none") -> None:
    """Convert where metrics go, by ``report_to``; ``run_name`` is the run's name there."""
    own = {"wandb": ("tracking.wandb", "online"), "trackio": ("tracking.trackio", "local")}
    listed = [str(name) for name in as_list(draft.get("report_to", usual))]
    said = [_TRACKERS.get(name, name) for name in listed]
    others = [name for name in said if name in get_args(Tracker)]
    rest = [name for name in said if name not in (*own, *others, "none")]
    for name, (setting, value) in own.items():
        if name in said:
            draft.settings.setdefault(setting, Noted(value, "report_to"))
    if others:
        draft.settings["tracking.report_to"] = Noted(others, None)
    known = [name for name in said if name in own or name in others]
    if draft.has("report_to"):
        told = f"tracking: {', '.join(known)}" if known else ""
        if rest:
            text = f"{', '.join(rest)}: metrics.jsonl and `gptoss-tune report` have the same curves"
            draft.none("report_to", f"{told}; {text}" if told else text)
        elif known:
            draft.also("report_to", told)
        else:
            draft.irrelevant("report_to", "metrics go to the run's metrics.jsonl")
    if draft.has("run_name"):
        if known:
            draft.converted("run_name", "tracking.run_name", str(draft.get("run_name")))
        else:
            draft.irrelevant("run_name", "no tracker is asked for")


def _spread_wanted(draft: Draft) -> bool:
    deepspeed = draft.get("deepspeed")
    if not is_off(deepspeed):
        stage = deepspeed.get("zero_optimization") if isinstance(deepspeed, dict) else None
        number = stage.get("stage") if isinstance(stage, dict) else None
        return number == 3 if number is not None else "3" in str(deepspeed).rpartition("/")[2]
    return not is_off(draft.get("fsdp")) or not is_off(draft.get("fsdp_config"))


def _spread(draft: Draft) -> bool:
    return draft.options.gpus > 1 and _spread_wanted(draft)


_CREDENTIALS = "a recipe holds no credentials: log in with 'hf auth login' or 'wandb login'"
_CODE = "no code of a checkpoint or a data set is ever run"

RULES: Final[dict[str, Rule]] = {
    **{
        key: same(f"train.{key}")
        for key in (
            *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
            *("max_grad_norm", "seed", "logging_steps", "save_total_limit", "output_dir"),
        )
    },
    "adam_eps": same("train.adam_epsilon"),
    "auto_find_batch_size": same("train.auto_find_batch_size"),
    **table(
        "transformers' own; the loop and its kernels are chosen by model.backend",
        irrelevant,
        "tf32 torch_compile torch_compile_backend torch_compile_mode use_liger_kernel "
        "enable_liger_kernel use_kernels low_cpu_mem_usage device_map use_cache "
        "gradient_checkpointing_kwargs accelerator_config ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_find_unused_parameters liger_kernel_config plugins",
    ),
    **table(
        "rows are rendered once into a cache and mapped into memory",
        irrelevant,
        "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor "
        "dataloader_drop_last dataloader_persistent_workers remove_unused_columns "
        "overwrite_cache group_by_length train_sampling_strategy length_column_name data_seed",
    ),
    **table(
        "a run never overwrites another; train.resume: auto goes on from the newest checkpoint",
        irrelevant,
        "overwrite_output_dir save_only_model save_safetensors resume_from_checkpoint "
        "auto_resume_from_checkpoints restore_callback_states_from_checkpoint",
    ),
    **table(
        "evaluation uses train.per_device_train_batch_size",
        irrelevant,
        "eval_batch_size per_device_eval_batch_size eval_accumulation_steps eval_on_start "
        "prediction_loss_only batch_eval_metrics",
    ),
    **table(
        "a schedule is transformers' own, with its arguments as train.lr_scheduler_kwargs",
        none,
        "cosine_constant_lr_ratio lr_quadratic_warmup",
    ),
    **table("no noise is added to embeddings", none, "neftune_noise_alpha noisy_embedding_alpha"),
    **table("all weights have one learning rate", none, "lr_groups embedding_lr"),
    **table(
        "`gptoss-tune push` uploads, when the run is done",
        none,
        "push_to_hub hub_model_id hub_strategy hub_private_repo hub_revision push_dataset_to_hub "
        "hub_always_push",
    ),
    **table(
        _CREDENTIALS,
        irrelevant,
        "hub_token hf_hub_token ms_hub_token om_hub_token hf_use_auth_token use_auth_token "
        "swanlab_api_key wandb_api_key token",
    ),
    **table(_CODE, irrelevant, "trust_remote_code trust_remote_code_model"),
    **table(
        "distributed.timeout_seconds stops a silent process after two minutes",
        irrelevant,
        "ddp_timeout",
    ),
    **table(
        "how metrics are printed and kept is the run's own",
        irrelevant,
        "logging_strategy logging_first_step logging_dir log_level disable_tqdm plot_loss "
        "include_num_input_tokens_seen include_tokens_per_second "
        "logging_nan_inf_filter profiler_steps include_effective_tokens_per_second report_to_all",
    ),
    **table(
        "a command trains; `gptoss-tune evaluate` and `chat` do the rest",
        irrelevant,
        "do_train do_eval do_predict predict_with_generate compute_accuracy",
    ),
    **table(
        "arguments of the optimizer beside betas and epsilon are not passed on",
        none,
        "optim_args optim_target_modules adam_beta3 adam_epsilon2",
    ),
    **table(
        "the launcher starts the processes",
        irrelevant,
        "world_size local_rank ddp device full_determinism debug strict",
    ),
    **table("train.deterministic gives the same bits on one GPU", irrelevant, "deterministic"),
}
"""Keys that stand alone and mean the same in all three tools."""
