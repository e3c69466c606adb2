"""The command that evaluates a served model with inspect-ai, through its chat API.

``openai-api/NAME/MODEL`` is its provider for servers that speak OpenAI's chat completions. Its
``openai/MODEL`` asks for OpenAI's Responses API, which most servers of open weights do not have;
against one that has not, it tries again for many minutes. Reasoning text comes back beside the
answer and is logged as such; scorers look at the answer alone (tested with 0.3.285).

See ``src/inspect_ai/model/_providers/openai_compatible.py`` of UKGovernmentBEIS/inspect_ai. It is
no dependency of this package: what it brings holds fsspec at one exact release, so it belongs into
an environment of its own; it needs nothing but the server's address.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from gptoss_tune.evaluate.lm_eval import ROOM

TASK: Final = "inspect_evals/gsm8k"
_SERVICE: Final = "local"


def served_inspect_command(
    url: str,
    model: str,
    *,
    task: str = TASK,
    logs: str | Path | None = None,
    at_once: int = 8,
) -> str:
    """Return the shell command for a model behind an OpenAI-compatible server.

    The key that its client asks for is set to a word: a server on one's own machine looks at none.

    Args:
        url: Of the API, such as ``http://127.0.0.1:8000/v1``.
        model: As the server calls it.
        task: A task of inspect-evals, or a file of one's own.
        logs: Folder of the results; default: named after the model.
        at_once: Requests at a time.
    """
    words = [
        "inspect",
        "eval",
        task,
        f"--model=openai-api/{_SERVICE}/{model}",
        f"--model-base-url={url.rstrip('/')}",
        f"--max-tokens={ROOM}",
        "--temperature=0",
        f"--max-connections={at_once}",
        "--max-retries=3",
        f"--log-dir={logs or Path(model).name + '-inspect'}",
    ]
    return f"{_SERVICE.upper()}_API_KEY=none {shlex.join(words)}"
