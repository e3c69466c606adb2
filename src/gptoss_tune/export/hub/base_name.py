"""The base's name on the Hub, as a card states it: checked against the Hub where it tells.

What a record or an adapter calls its base is a claim of whoever made it, and the metadata of a card
decides below which model it is listed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.recipe.schema.value_types import is_hub_name
from gptoss_tune.weights import Checkpoint

_SHAPE = (
    *("num_hidden_layers", "num_local_experts", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
)


def hub_base_name(base: Checkpoint, given: str | None) -> str:
    """Return the base's name on the Hub: the one given, or the one it was opened by.

    Raises:
        CheckpointError: It was opened as a local folder, which means nothing to others.
    """
    name = given or base.name
    if not is_public(name):
        said = "--base-name is" if given else "the base was opened as"
        raise CheckpointError(
            f"{said} '{name}', which is no name on the Hub; say which model it is with "
            "--base-name, for example openai/gpt-oss-20b"
        )
    return name


def is_public(name: str) -> bool:
    """Return whether a text is ``owner/name`` and no folder of this machine."""
    return is_hub_name(name) and name.count("/") == 1 and not Path(name).exists()


def compare_shape(base: Checkpoint, name: str) -> bool:
    """Return whether the Hub bears out that ``base`` has the shape of the model ``name``.

    Returns:
        False where the Hub does not tell: no such model, no access, no answer.

    Raises:
        CheckpointError: That model has another shape.
    """
    if base.name == name:
        return True  # it was opened from there
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = read_object(Path(hf_hub_download(name, "config.json", local_dir=folder)))
    except (HTTPError, HfHubHTTPError, OSError, CheckpointError):
        return False
    differences = [
        f"{key} {base.config.get(key)} and not {config[key]}"
        for key in _SHAPE
        if key in config and config[key] != base.config.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"--base-name is '{name}', but the base in {base.path} is another model: it has "
            f"{', '.join(differences)}; name the model that was trained"
        )
    return True
