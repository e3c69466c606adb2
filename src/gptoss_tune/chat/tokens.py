"""How long a conversation is: in tokens, by channel, and what is left of it.

Of a model in process all of it is known. A server counts in its own way, which is taken where it
tells; what it does not tell is counted here with gpt-oss's vocabulary, and said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gptoss_tune.chat.talk import Answer, InProcess, Talk
from gptoss_tune.harmony.conversation import CHANNELS
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary

_COUNTED: Final = "counted here with gpt-oss's vocabulary"
_MOST: Final = 10**9


def describe_tokens(talk: Talk) -> list[str]:
    """Return lines on the conversation, its last answer by channel, and what remains."""
    answers = talk.answers
    if isinstance(answers, InProcess):
        total, source = len(answers.answerer.render(talk.conversation())), ""
    else:
        total, source = _total_served(talk)
    longest = talk.sampling.max_new_tokens
    if answers.context is None:
        room = "how long it may become, the server does not tell"
    else:
        left = max(0, answers.context - total - longest)
        room = f"of {answers.context:,}; beside an answer of up to {longest:,}, {left:,} remain"
    shown = f" ({source})" if source else ""
    lines = [f"conversation  {total:,} tokens{shown}, {room}"]
    if talk.turns:
        lines += _of_answer(talk.turns[-1].answer, longest)
    return lines


def completion_tokens(answer: Answer) -> int | None:
    """Return how many tokens a server says that its answer has; ``None``: it does not say."""
    return _count(answer.stream.usage, "completion_tokens")


def _of_answer(answer: Answer, longest: int) -> list[str]:
    """Return the tokens of an answer as lines."""
    stream = answer.stream
    if hasattr(stream, "by_channel"):
        total, parts, source = stream.tokens, dict(stream.by_channel), ""
        parts["headers and ends"] = total - sum(parts.values())
    else:
        total, parts, source = _answer_served(answer)
    listed = ", ".join(f"{name} {number:,}" for name, number in parts.items() if number)
    left = max(0, longest - total)
    shown = f" ({source})" if source else ""
    whole = f"{total:,} tokens{shown}, {left:,} below --max-new-tokens {longest:,}"
    return [f"last answer   {whole}", *([f"              {listed}"] if listed else [])]


def _total_served(talk: Talk) -> tuple[int, str]:
    """Return the tokens of a served conversation, and who counted them."""
    if talk.turns:
        usage = talk.turns[-1].answer.stream.usage
        prompt, answer = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        if prompt is not None and answer is not None:
            return prompt + answer, "the server's count"
    vocabulary = load_vocabulary()
    ids = Renderer(vocabulary, RenderSettings()).render_prompt(talk.conversation())
    return len(ids), _COUNTED


def _answer_served(answer: Answer) -> tuple[int, dict[str, int], str]:
    """Return all tokens of a served answer, those of its channels, and who counted them."""
    usage = answer.stream.usage
    encode = load_vocabulary().encode
    parts: dict[str, int] = {}
    for message in answer.messages:
        channel = message.header.channel or CHANNELS[-1]
        text = message.text.encode("utf-8", "replace").decode()
        parts[channel] = parts.get(channel, 0) + len(encode(text))
    total = _count(usage, "completion_tokens")
    if total is None:
        return sum(parts.values()), parts, f"text alone, {_COUNTED}"
    thought = _count(usage.get("completion_tokens_details"), "reasoning_tokens")
    if thought:
        parts["analysis"] = thought
        return total, parts, "the server's count, but for the other channels"
    return total, parts, f"the server's count; by channel {_COUNTED}"


def _count(holder: Mapping[str, Any] | None, key: str) -> int | None:
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if type(value) is int and 0 <= value < _MOST else None
