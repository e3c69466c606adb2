"""Names of an adapter's tensors, as programs write them, and PEFT's names for the same.

A state dict that was saved as it was in training has the adapter's name in its keys
(``lora_A.default.weight``, ``modules_to_save.default.weight``) and the wrappers of compile and of
several GPUs; PEFT takes both out when it saves. Other programs have names of their own for the two
factors, often of transposed tensors: renaming those would be a guess, so they are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights.layouts.names import without_wrappers

PREFIX = "base_model.model."
"""What PEFT puts before the name of a module."""

_NAME = r"(?:\.(?P<name>[\w-]+))?"
_FORMS = tuple(
    (re.compile(rf"(?P<stem>.*\.){pattern}"), plain)
    for pattern, plain in (
        (rf"(?P<kind>lora_[AB]){_NAME}\.(?P<part>weight|bias)", "{stem}{kind}.{part}"),
        (rf"(?P<kind>lora_embedding_[AB]){_NAME}", "{stem}{kind}"),
        (r"lora_magnitude_vector(?:\.(?!weight$)(?P<name>[\w-]+))?(?:\.weight)?", "{stem}"),
        (
            rf"token_adapter\.trainable_tokens_delta{_NAME}",
            "{stem}token_adapter.trainable_tokens_delta",
        ),
        (
            r"modules_to_save(?:\.(?P<name>(?!weight$|bias$)[\w-]+))?\.(?P<part>weight|bias|sinks)",
            "{stem}{part}",
        ),
    )
)
_OTHER_PROGRAMS = (
    (
        re.compile(r"\.adapter\.linear_(?:in|out)\b|\blinear_qkv\b|\bdecoder\.layers\."),
        "as NeMo and Megatron name them, with q, k and v in one weight; export it there to "
        "Hugging Face's form (NeMo: llm.export_ckpt with target 'hf-peft'), or merge it there",
    ),
    (
        re.compile(r"\.lora_[ab](?:\.weight)?$"),
        "as torchtune and mlx-lm name them, whose factors may be transposed; save it there in "
        "PEFT's form (torchtune: save_adapter_weights_only with its HF checkpointer), or merge it "
        "there",
    ),
    (
        re.compile(r"\blora_(?:down|up)\b|^lora_unet|^lora_te"),
        "as kohya's scripts name them; save it in PEFT's form, or merge it there",
    ),
)


def pefts_name(stored: str) -> tuple[str, str | None]:
    """Return the name under which PEFT saves a tensor, and the adapter's name that is in it.

    Raises:
        CheckpointError: It is the factor of another program, whose layout is not PEFT's.
    """
    for pattern, told in _OTHER_PROGRAMS:
        if pattern.search(stored):
            raise CheckpointError(f"'{stored[:90]}' is {told}")
    for pattern, plain in _FORMS:
        found = pattern.fullmatch(stored)
        if found:
            parts = found.groupdict()
            named = plain.format(**parts)
            if plain == "{stem}":
                named += "lora_magnitude_vector"
            return PREFIX + without_wrappers(named), parts.get("name")
    return PREFIX + without_wrappers(stored), None


def pefts_names(path: object, stored: Iterable[str]) -> dict[str, str]:
    """Return the names under which PEFT saves the tensors, by those in the file.

    Args:
        path: The file, for messages.
        stored: Names in it.

    Raises:
        CheckpointError: Two are one tensor, two adapters are in the file, or another program's.
    """
    names: dict[str, str] = {}
    seen: dict[str, str] = {}
    adapters: dict[str, str] = {}
    for each in stored:
        try:
            name, adapter = pefts_name(each)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if adapter is not None:
            adapters.setdefault(adapter, each)
        if len(adapters) > 1:
            one, other = list(adapters)[:2]
            raise CheckpointError(
                f"{path}: holds two adapters, '{one}' ('{adapters[one][:90]}') and '{other}' "
                f"('{adapters[other][:90]}'); save each in a folder of its own (PEFT: "
                "save_pretrained with selected_adapters)"
            )
        if name in seen:
            raise CheckpointError(
                f"{path}: '{seen[name]}' and '{each}' are one factor; the file holds two "
                "adapters, save one"
            )
        seen[name] = each
        names[each] = name
    return names
