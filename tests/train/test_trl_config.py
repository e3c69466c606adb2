"""The trainer's tokenizer has the ids of the encoding that rows are rendered with."""

from gptoss_tune.harmony.vocabulary import NAMED_SPECIAL_TOKENS, load_vocabulary
from gptoss_tune.train.trl_config import training_tokenizer


def test_its_ids_are_those_of_the_rendering():
    tokenizer, encoding = training_tokenizer(), load_vocabulary().encoding
    for name in NAMED_SPECIAL_TOKENS:
        (number,) = encoding.encode(name, allowed_special="all")
        assert tokenizer.convert_tokens_to_ids(name) == number
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (199_998, 200_002, 199_999)
