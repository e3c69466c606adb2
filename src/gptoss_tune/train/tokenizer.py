"""The tokenizer that the trainer is given: the special tokens of the harmony format, nothing else.

Rows are rendered by openai-harmony before the trainer sees them; of a tokenizer it reads the
special ids alone, which every base has to share (``Vocabulary.check_tokenizer``). The base's own
``tokenizer.json`` was the alternative: it takes seconds to read, more than a tiny run takes to
train, to hand over three numbers. ``AutoTokenizer`` also takes from the base's folder the class to
build, code to import and a chat template to run, all of which whoever wrote the folder chose.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from gptoss_tune.harmony.vocabulary import NAMED_SPECIAL_TOKENS


def training_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows gpt-oss's special tokens by their ids, and no other word."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(NAMED_SPECIAL_TOKENS)),
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
    )
