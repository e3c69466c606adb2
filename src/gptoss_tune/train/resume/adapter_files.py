"""The adapter on disk, in PEFT's format: of a checkpoint and of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_tune.files.atomic import to_json, write_text
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.model.lora import choice_of
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG, CHOSEN_EXPERTS


def save_adapter(model: Any, folder: Path, state_dict: dict | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` in PEFT's format.

    The factors of chosen experts are written as they are held, and the configuration says of whom.
    """
    model.save_pretrained(
        str(folder),
        state_dict=state_dict,
        safe_serialization=True,
        # Nothing of the vocabulary is trained; "auto" would ask the Hub about the base's.
        save_embedding_layers=False,
    )
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours comes with a push
    choice = choice_of(model)
    if choice is not None:
        config = read_object(folder / ADAPTER_CONFIG)
        config[CHOSEN_EXPERTS] = {str(layer): list(chosen) for layer, chosen in choice.items()}
        write_text(folder / ADAPTER_CONFIG, to_json(config))
