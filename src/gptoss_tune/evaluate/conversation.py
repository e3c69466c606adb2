"""A loaded model that answers: one prompt in, text with its channels out, as it comes.

``Answerer`` is what every front asks: the terminal, the server, a page (``chat.talk`` is a
conversation that goes on)::

    answerer = open_answerer(open_evaluated_model("runs/mine"), TrainedAs(), device)
    stream = answerer.stream(answerer.prompt({"messages": [...]}), Sampling())
    for delta in stream:                      # Delta(channel, recipient, text, message)
        print(delta.text, end="")
    stream.ended, stream.messages, stream.tokens

A row is read and rendered as training reads and renders it, so the model is asked in the context
that it was trained in. The weights stay packed and the kernels are those of training (``load``).
One answer is computed at a time; ``should_stop`` ends it between two tokens, from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch

from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.answering.sampling import Sampling
from gptoss_tune.evaluate.channels import ChannelReader, Delta, Ended
from gptoss_tune.evaluate.generate import stream_tokens
from gptoss_tune.evaluate.load import EvaluatedModel, load_answering_model
from gptoss_tune.evaluate.memory import telling_what_helps
from gptoss_tune.evaluate.prompts import LONGEST_CONTEXT
from gptoss_tune.evaluate.trained_as import TrainedAs
from gptoss_tune.harmony.conversation import Conversation, Message
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import Vocabulary, load_vocabulary
from gptoss_tune.recipe import ModelSection

_SOURCE: Final = "the request"


class AnswerStream:
    """One answer in the making: iterate over it once; its attributes tell what was read so far.

    Attributes:
        prompt: The ids that were asked.
        ids: The generated ones so far, those of an answer that goes on included.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        tokens: Iterator[int],
        reader: ChannelReader,
        longest: int,
        begun: Sequence[int] = (),
    ) -> None:
        """Read ``tokens``, of which ``longest`` may come, with ``reader``.

        Args:
            prompt: What was asked.
            tokens: Generated ids.
            reader: A new one.
            longest: Most that may come.
            begun: Ids of the same answer that were generated and shown before.
        """
        self.prompt, self.ids = list(prompt), list(begun)
        self._tokens, self._reader, self._longest = tokens, reader, len(begun) + longest
        for token in begun:
            reader.take(token)

    def __iter__(self) -> Iterator[Delta]:
        """Yield new text as tokens come."""
        for token in self._tokens:
            self.ids.append(token)
            yield from self._reader.take(token)
        yield from self._reader.end()

    def cut(self) -> list[Delta]:
        """End the answer here, as Ctrl-C does; return text that waited for more."""
        return self._reader.end()

    @property
    def messages(self) -> list[Message]:
        """The messages of the answer that were harmony; the last one may be cut."""
        return self._reader.messages()

    @property
    def tokens(self) -> int:
        """Generated tokens, the one that ended the answer included."""
        return self._reader.tokens

    @property
    def by_channel(self) -> dict[str, int]:
        """Tokens of the text by channel; what is left of ``tokens`` is headers and ends."""
        return dict(self._reader.by_channel)

    @property
    def ended(self) -> Ended:
        """Why it ended: ``interrupt`` where neither the model nor its limit did."""
        ended = self._reader.ended()
        return "interrupt" if ended == "length" and self.tokens < self._longest else ended


class Answerer:
    """A model on its device, with its vocabulary.

    Attributes:
        name: As it was given.
        context: Tokens that a prompt and its answer may have together.
        trained_as: The effort and date that a prompt gets unless it says otherwise.
    """

    def __init__(
        self, model: Any, vocabulary: Vocabulary, name: str, trained_as: TrainedAs
    ) -> None:
        """Answer with ``model``; ``open_answerer`` loads it."""
        self.name, self.trained_as = name, trained_as
        self.context = LONGEST_CONTEXT
        self._model, self._vocabulary = model, vocabulary
        self._renderers: dict[RenderSettings, Renderer] = {}

    def prompt(self, row: dict[str, Any]) -> list[int]:
        """Return the ids that ask a row: ``messages``, and ``tools``, ``reasoning_effort`` if any.

        Raises:
            DataError: It cannot be read, or ends with the assistant.
        """
        conversation = read_prompt(row, _SOURCE)
        last = conversation.messages[-1]
        if last.is_assistant:
            raise DataError(
                f"{_SOURCE}: the last message is the assistant's own; a question ends with a "
                "message of the user, or with the result of a tool"
            )
        return self.render(conversation)

    def render(self, conversation: Conversation) -> list[int]:
        """Return the ids of a conversation that the assistant is to answer."""
        settings = RenderSettings(self.trained_as.effort, self.trained_as.date)
        if settings not in self._renderers:
            self._renderers[settings] = Renderer(self._vocabulary, settings)
        return self._renderers[settings].render_prompt(conversation)

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        should_stop: Callable[[], bool] = lambda: False,
        begun: Sequence[int] = (),
    ) -> AnswerStream:
        """Return the answer to a prompt; it is computed while it is iterated over.

        Iterating raises MachineError where the memory of the device, or of the host, is full.

        Args:
            prompt: From ``prompt`` or ``render``.
            sampling: How tokens are drawn, and how many.
            should_stop: Asked before each token.
            begun: Ids of an answer that was cut off, and goes on where it ended.

        Raises:
            DataError: Prompt and answer are longer than the model's context.
        """
        asked = [*prompt, *begun]
        self._refuse_too_long(len(asked), sampling.max_new_tokens)
        tokens = self._tokens(asked, sampling, should_stop)
        reader = ChannelReader(self._vocabulary.encoding)
        return AnswerStream(prompt, tokens, reader, sampling.max_new_tokens, begun)

    def _refuse_too_long(self, prompt: int, answer: int) -> None:
        """Refuse what the context has no room for.

        Raises:
            DataError: Prompt and answer together have more tokens than it holds.
        """
        if prompt + answer > self.context:
            raise DataError(
                f"the conversation has {prompt:,} tokens; with an answer of up to {answer:,} that "
                f"is over the {self.context:,} of gpt-oss: begin anew, or allow a shorter answer"
            )

    def _tokens(
        self, prompt: Sequence[int], sampling: Sampling, should_stop: Callable[[], bool]
    ) -> Iterator[int]:
        """Yield generated ids."""
        tokens = stream_tokens(self._model, prompt, sampling, should_stop)
        while True:
            with telling_what_helps():
                token = next(tokens, None)
            if token is None:
                return
            yield token


def open_answerer(
    subject: EvaluatedModel, trained_as: TrainedAs, section: ModelSection, device: torch.device
) -> Answerer:
    """Load a model to talk to.

    Args:
        subject: From ``open_evaluated_model``.
        trained_as: How it is asked, from ``trained_as``.
        section: How the weights are held.
        device: Where they go.

    Raises:
        MachineError: It does not fit, or a backend cannot run here.
        DataError: The tokenizer is not that of gpt-oss.
    """
    vocabulary = load_vocabulary(subject.checkpoint.path)
    with telling_what_helps():
        model = load_answering_model(subject, section, device)
    return Answerer(model, vocabulary, subject.name, trained_as)
