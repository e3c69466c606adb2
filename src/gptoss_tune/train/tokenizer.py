"""The tokenizer that the trainer is given: the ids of the base, and nothing else of it.

Rows are rendered by openai-harmony before the trainer sees them; of the tokenizer it reads the
special ids alone. ``AutoTokenizer`` was the alternative: it also takes from the base's folder the
class to build, code to import and a chat template to run, all of which whoever wrote the folder
chose.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from gptoss_tune.checkpoint import Checkpoint
from gptoss_tune.checkpoint.inside import inside
from gptoss_tune.harmony.tokenizer_file import open_tokenizer


def training_tokenizer(base: Checkpoint) -> PreTrainedTokenizerFast:
    """Return a tokenizer from ``tokenizer.json`` of ``base``, which the rendering has checked."""
    file = inside(base.path, "tokenizer.json", f"{base.path}: has")
    return PreTrainedTokenizerFast(
        tokenizer_object=open_tokenizer(file),
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
    )
