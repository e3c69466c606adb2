"""Kinds of adapters that are no low-rank change of a weight: each refused for its own reason.

PEFT has some forty kinds, a dozen starts of LoRA and as many variants of it. Which of them a merge
can hold is a property of each: some change no weight, some change weights by another formula, which
PEFT can merge, and some mean another base than the one they name. A refusal says which it is.
"""

from __future__ import annotations

from typing import Any

from gptoss_tune.errors import CheckpointError

MERGE_WITH_PEFT = (
    "merge it with PEFT instead: load the base dense (transformers, Mxfp4Config(dequantize=True)), "
    "then PeftModel.from_pretrained(model, DIR).merge_and_unload().save_pretrained(OUT), put its "
    "tokenizer beside it, AutoTokenizer.from_pretrained(BASE).save_pretrained(OUT), and use OUT as "
    "a base"
)
_PROMPT_KINDS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
    "ADAPTION_PROMPT",
}  # fmt: skip
_OTHER_FORMULAS = {
    "LOHA": "a Hadamard product of two low-rank changes",
    "LOKR": "a Kronecker product",
    "ADALORA": "B E A with singular values E, scaled by the ranks that pruning left",
    "IA3": "factors that rescale the activations",
    "VERA": "random projections, which are drawn again from a seed, with trained scales",
    "OFT": "an orthogonal matrix that multiplies the weight",
    "BOFT": "orthogonal matrices that multiply the weight",
    "HRA": "reflections that multiply the weight",
    "FOURIERFT": "Fourier coefficients",
    "VBLORA": "indices into a bank of vectors",
    "TRAINABLE_TOKENS": "rows of the embedding alone",
}
_OPTIONS = {
    "layer_replication": "it stacks layers anew, which is another architecture than the base's; "
    "build that model and merge with PEFT",
    "fan_in_fan_out": "its factors are of weights stored [in, out], and gpt-oss stores [out, in]; "
    "the adapter is of another architecture",
    "megatron_config": "it has PEFT import a module that this file names; remove it",
    "corda_config": "it has PEFT unpickle a file that this file names; it is of the start alone, "
    "save the adapter converted to plain LoRA or remove it",
    "use_qalora": "QALoRA pools its inputs in groups, so that A has fewer columns than the weight; "
    + MERGE_WITH_PEFT,
    "alora_invocation_tokens": "aLoRA acts on the tokens after its invocation alone, which no "
    "merged weight can; serve base and adapter with PEFT",
    "arrow_config": "Arrow chooses between adapters for each token, which no merged weight can; "
    "merge one of its adapters",
    "use_bdlora": f"BD-LoRA stores the blocks of block-diagonal factors; {MERGE_WITH_PEFT}",
    "kasa_config": f"KaSA has singular values between its factors; {MERGE_WITH_PEFT}",
    "monteclora_config": f"MonteCLoRA draws its factors; {MERGE_WITH_PEFT}",
}
_CONVERTED_STARTS = ("pissa", "olora", "corda", "lora_ga")
# Starts that set the factors alone; the others change the base, and the factors mean that base.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")


def refuse_other_kinds(file: object, config: dict[str, Any]) -> None:
    """Refuse what is no LoRA of PEFT, and variants of LoRA that are no low-rank change.

    Args:
        file: ``adapter_config.json``, for messages.
        config: What it holds.

    Raises:
        CheckpointError: What it is, why no merge can hold it, and what to do.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{file}: {_why_other_kind(kind, config)}")
    for option, reason in _OPTIONS.items():
        if config.get(option):
            shown = ascii(config[option])[:60]
            raise CheckpointError(f"{file}: {option} is {shown}: {reason}; refused")
    bias = config.get("bias", "none")
    if bias != "none":
        raise CheckpointError(
            f"{file}: bias is {bias!a}, by which biases of the base were trained beside the "
            f"factors; expected 'none': {MERGE_WITH_PEFT}"
        )
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise CheckpointError(f"{file}: init_lora_weights is {ascii(start)[:60]}, {_why(start)}")


def _why_other_kind(kind: object, config: dict[str, Any]) -> str:
    """Return why an adapter of another kind than LoRA is refused."""
    if kind is None and "fine_tune_type" in config:
        return (
            "is written by mlx-lm, whose factors are transposed and of MLX's own layout of the "
            "experts; fuse it there (mlx_lm.fuse --dequantize) and use the result as a base"
        )
    if not isinstance(kind, str):
        return f"peft_type is {ascii(kind)[:60]}; expected 'LORA', as PEFT writes it"
    if kind in _PROMPT_KINDS:
        return (
            f"peft_type is {kind!a}, which adds to the prompt and changes no weight; expected "
            "'LORA': it cannot be merged, use base and adapter together in PEFT"
        )
    formula = _OTHER_FORMULAS.get(kind)
    told = f", which is {formula} and no low-rank change" if formula else ""
    return f"peft_type is {kind[:40]!a}{told}; expected 'LORA': {MERGE_WITH_PEFT}"


def _why(start: object) -> str:
    """Return why a start that changed the base is refused."""
    if str(start).lower().startswith(_CONVERTED_STARTS):
        return (
            "which changed the base before the training; save the adapter converted to plain LoRA "
            "(PEFT: save_pretrained with path_initial_model_for_weight_conversion), which has "
            "twice the rank"
        )
    if start == "loftq":
        return (
            "which changed the base before the training: LoftQ's factors belong to its own "
            "quantised base; merge with PEFT into that base and use the result as a base"
        )
    return "a start that is not known and may have changed the base; expected true"
