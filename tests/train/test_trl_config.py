"""The trainer's tokenizer has the ids of the encoding that rows are rendered with."""

import warnings

from trl import SFTConfig

from gptoss_tune.harmony.vocabulary import NAMED_SPECIAL_TOKENS, load_vocabulary
from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.train.trl_config import trainer_arguments, training_tokenizer


def test_its_ids_are_those_of_the_rendering():
    tokenizer, encoding = training_tokenizer(), load_vocabulary().encoding
    for name in NAMED_SPECIAL_TOKENS:
        (number,) = encoding.encode(name, allowed_special="all")
        assert tokenizer.convert_tokens_to_ids(name) == number
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (199_998, 200_002, 199_999)


def test_no_argument_is_one_that_will_be_removed(tmp_path):
    train = TrainSection.model_validate({"output_dir": str(tmp_path), "max_steps": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        config = SFTConfig(**trainer_arguments(train, held_out=False, dtype="float32"))
    assert config.gradient_checkpointing is False
