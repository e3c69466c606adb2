"""A conversation with a GGUF model: rendered and read by gptoss-tune, computed by llama.cpp.

llama.cpp has a chat template and a parser of its own; through them a special token that a user
spells out becomes a real one, and words with combining marks are split otherwise than gpt-oss was
trained on. So the ids are ours on both sides, and the file's vocabulary is held against that of
gpt-oss before anything is asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.conversation import Answerer
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.evaluate.llama_cpp.engine import CONTEXT, LlamaCpp
from gptoss_tune.evaluate.trained_as import TrainedAs, recorded_as
from gptoss_tune.harmony.vocabulary import (
    NAMED_SPECIAL_TOKENS,
    ORDINARY_TOKENS,
    Vocabulary,
    load_vocabulary,
)


class LlamaCppAnswerer(Answerer):
    """A GGUF model in llama.cpp, with its vocabulary.

    Attributes:
        name: As it was given.
        trained_as: The effort and date that a prompt gets unless it says otherwise.
        engine: What computes.
    """

    def __init__(
        self, engine: LlamaCpp, vocabulary: Vocabulary, name: str, trained_as: TrainedAs
    ) -> None:
        """Answer with ``engine``; ``open_gguf_answerer`` loads it."""
        super().__init__(engine, vocabulary, name, trained_as)
        self.engine, self.context = engine, engine.context

    def _refuse_too_long(self, prompt: int, answer: int) -> None:
        self.engine.refuse_too_long(prompt, answer)

    def _tokens(
        self, prompt: Sequence[int], sampling: Sampling, should_stop: Callable[[], bool]
    ) -> Iterator[int]:
        """Yield generated ids."""
        return self.engine.stream(prompt, sampling, should_stop)

    def describe(self) -> str:
        """Return what answers, for people: the size of the files, and the context."""
        size = sum(file.stat().st_size for file in self.engine.files)
        return f"llama.cpp, {size / 1e9:.2f} GB, context {self.engine.context:,} tokens"

    def close(self) -> None:
        """Free the model; nothing can be asked any more."""
        self.engine.close()


def open_gguf_answerer(
    name: str,
    trained_as: TrainedAs,
    *,
    context: int = CONTEXT,
    adapters: Sequence[Path] = (),
    threads: int | None = None,
) -> LlamaCppAnswerer:
    """Load a GGUF model to talk to.

    Args:
        name: A GGUF file, or a folder with one.
        trained_as: How it is asked, from ``gguf_trained_as``.
        context: Longest conversation, answers included, in tokens.
        adapters: GGUF files of LoRA factors to apply.
        threads: Of the CPU; ``None``: ``OMP_NUM_THREADS``, else llama.cpp's choice.

    Raises:
        CheckpointError: No model is there, or llama.cpp does not read it.
        DataError: Its tokenizer is not that of gpt-oss.
        MachineError: llama.cpp is not installed.
    """
    vocabulary = load_vocabulary()
    engine = LlamaCpp(name, context=context, adapters=adapters, threads=threads)
    try:
        check_vocabulary(engine, vocabulary)
    except BaseException:
        engine.close()
        raise
    return LlamaCppAnswerer(engine, vocabulary, name, trained_as)


def gguf_trained_as(name: str) -> TrainedAs:
    """Return how a run rendered its data, by the report beside a GGUF file; elsewhere none is."""
    path = Path(os.path.expanduser(name))
    return recorded_as(path if path.is_dir() else path.parent)


def check_vocabulary(engine: LlamaCpp, vocabulary: Vocabulary) -> None:
    """Stop where the vocabulary inside the file is another than that of gpt-oss.

    Every ordinary id is compared by its text, every special token by its id. How llama.cpp would
    split a text into them is no matter here: it is given ids.

    Raises:
        DataError: An id has another text, or a special token another id.
    """
    ordinary = list(range(ORDINARY_TOKENS))
    if engine.detokenize(ordinary) != vocabulary.decode(ordinary):
        raise DataError(
            f"{engine.files[0]}: its vocabulary is not that of gpt-oss, so the ids of a prompt "
            "would mean other words to it; expected a GGUF file of gpt-oss"
        )
    for name, token in NAMED_SPECIAL_TOKENS.items():
        if (found := engine.tokenize(name)) != [token]:
            raise DataError(
                f"{engine.files[0]}: special token {name} becomes {found}, the harmony format "
                f"needs {token}; expected a GGUF file of gpt-oss with its tokenizer"
            )
