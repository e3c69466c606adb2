"""How ``transformers serve`` tells the channels of an answer apart, for the tokenizer's settings.

vLLM, SGLang and llama.cpp know harmony by themselves. transformers (5.23) reads from the model's
folder how its answers are laid out, has nothing for gpt-oss, and without it hands the channels over
as one text: ``analysisThe user asks ...assistantfinalParis``. So a merged model brings it along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import to_json, write_text
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object

KEY: Final = "response_template"
_OPENING: Final = r"(?:<\|start\|>assistant)?"
_KIND: Final = r"\s*(?:<\|constrain\|>)?\s*(?:json)?\s*"
_CALLED: Final = r"to=functions\.(?P<name>[\w-]+)"
RESPONSE_TEMPLATE: Final[dict[str, Any]] = {
    "version": 1,
    "defaults": {"role": "assistant"},
    "start_anchor": "<|start|>assistant",
    "fields": {
        "reasoning_content": {
            "open_pattern": _OPENING + r"<\|channel\|>analysis<\|message\|>",
            "close": ["<|end|>", "<|return|>", "<|call|>"],
            "content": "text",
            "content_args": {"strip": False},
            "repeats": True,
            "join": "\n\n",
        },
        "tool_calls": {
            # The recipient stands behind the channel, or before it in the role's place.
            "open_pattern": _OPENING
            + rf"(?|<\|channel\|>commentary\s+{_CALLED}{_KIND}"
            + rf"|\s+{_CALLED}<\|channel\|>commentary{_KIND})<\|message\|>",
            "close": ["<|call|>", "<|end|>", "<|return|>"],
            "content": "text",
            "content_args": {"strip": False},
            "repeats": True,
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
        "content": {
            "open_pattern": _OPENING + r"<\|channel\|>(?:final|commentary)\s*<\|message\|>",
            "close": ["<|return|>", "<|end|>", "<|call|>"],
            "content": "text",
            "content_args": {"strip": False},
            "repeats": True,
            "join": "\n\n",
        },
    },
}
"""Channels as fields of a chat message; arguments of a call stay as the model wrote them."""


def add_response_template(folder: Path) -> None:
    """Add the template to the tokenizer's settings in ``folder``, unless they have one.

    Raises:
        CheckpointError: The settings are no JSON object.
        MachineError: The disk is full or cannot be written.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a merged model needs it to be served")
    settings = read_object(inside(folder, path.name, f"{folder}: has"))
    if settings.get(KEY) is None:
        write_text(path, to_json({**settings, KEY: RESPONSE_TEMPLATE}))
