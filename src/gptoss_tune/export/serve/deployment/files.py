"""Files that a bundle carries besides its configuration, and where a container finds them."""

from __future__ import annotations

from pathlib import Path

from gptoss_tune.errors import CheckpointError
from gptoss_tune.harmony.vocabulary import RANKS_FILE
from gptoss_tune.shipped import shipped

VOCABULARY = "vocabulary"
VOCABULARY_FILE = f"{VOCABULARY}/{RANKS_FILE}"
VOCABULARY_VARIABLE = "TIKTOKEN_ENCODINGS_BASE"
"""Where openai-harmony, which servers render conversations with, looks for its vocabulary before it
asks the internet."""
ONLY_V1 = "only_v1.py"
MIDDLEWARE = "only_v1.OnlyV1"


def middleware_text() -> str:
    """Return the middleware that leaves vLLM's paths without a key unanswered."""
    return Path(__file__).with_name(ONLY_V1).read_text(encoding="utf-8")


def vocabulary_text() -> str:
    """Return the vocabulary file of gpt-oss, 3.6 MB of base64 and ids.

    Raises:
        CheckpointError: The installation has lost it.
    """
    path = shipped("data") / "vocab" / RANKS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; reinstall gptoss-tune")
    return path.read_text(encoding="ascii")
