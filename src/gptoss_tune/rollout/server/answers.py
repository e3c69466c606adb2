"""A completion as vLLM answers it -> tokens, log-probabilities, experts, and whose weights.

Everything is checked before it is trained on: the prompt is the one that was sent, the answer ends
as it may, its tokens are as many as their log-probabilities, and the experts are of every token
that went through the model. Text is not looked at: a text that is tokenised again is other tokens.

N tokens of a prompt, M sampled, L layers, K experts of a token.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.rollout.sampler import Request, Sampled


class OddAnswer(Exception):
    """An answer that is not what was asked for; says what was expected and what came."""


@dataclass(frozen=True)
class Sizes:
    """What an answer is checked against.

    Attributes:
        vocabulary: Number of token ids.
        layers: L.
        experts: Of a layer.
        experts_per_token: K.
    """

    vocabulary: int
    layers: int
    experts: int
    experts_per_token: int


@dataclass(frozen=True)
class Weights:
    """The weights that the server was given, as its answers have to name them.

    Attributes:
        version: The trainer's step.
        model: What is asked for, and what an answer must be of.
        label: What an answer must say of the weights of all its tokens; ``None``: the name of the
            model is that of these weights.
    """

    version: int
    model: str
    label: str | None = None


def completion_fields(request: Request, weights: Weights, temperature: float) -> dict[str, Any]:
    """Return the fields of the completion that samples ``request``.

    Nothing of the server's own defaults takes part: every setting of the draws is sent, and the
    tokens that end an answer are ours whatever its generation config says.
    """
    fields: dict[str, Any] = {
        "model": weights.model,
        "prompt": list(request.prompt),
        "max_tokens": request.max_new_tokens,
        "temperature": temperature,
        "seed": request.seed % 2**63,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(STOP_IDS),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if weights.label is not None:
        fields["return_weight_versions"] = True
    return fields


def other_weights(answer: Mapping[str, Any], weights: Weights) -> str | None:
    """Return whose weights gave an answer, where they are not ``weights``; else ``None``.

    Raises:
        OddAnswer: The answer does not tell.
    """
    model = answer.get("model")
    if not isinstance(model, str):
        raise OddAnswer(f"expected the name of the model in every answer, got {model!r}")
    if model != weights.model:
        return model
    if weights.label is None:
        return None
    choice, tokens = _choice(answer), 0
    spans = choice.get("weight_versions")
    if not isinstance(spans, list):
        raise OddAnswer(
            "expected the version of the weights of every token (weight_versions), got none: vLLM "
            "0.33 or newer tells it"
        )
    for span in spans:
        told = span.get("version") if isinstance(span, dict) else None
        if told != weights.label:
            return str(told)
        if span.get("start") != tokens or not isinstance(span.get("end"), int):
            raise OddAnswer(f"expected spans of tokens without a gap, got {spans}")
        tokens = span["end"]
    written = len(choice.get("token_ids") or ())
    if tokens != written:
        raise OddAnswer(f"its version of the weights is of {tokens} tokens, expected {written}")
    return None


def read_answer(
    answer: Mapping[str, Any], request: Request, weights: Weights, sizes: Sizes
) -> Sampled:
    """Return what was sampled.

    Args:
        answer: Of the server, whose weights were looked at (``other_weights``).
        request: What was asked.
        weights: Whose answer it is.
        sizes: Of the model.

    Raises:
        OddAnswer: Something is missing or does not fit the rest.
    """
    choice = _choice(answer)
    prompt = choice.get("prompt_token_ids")
    if prompt != list(request.prompt):
        count = len(prompt) if isinstance(prompt, list) else "no"
        raise OddAnswer(
            f"expected the prompt's own {len(request.prompt)} ids back, got {count} others: they "
            "were cut, or tokenised again"
        )
    tokens = _ids(choice.get("token_ids"), sizes.vocabulary)
    _check_end(tokens, choice.get("finish_reason"), request.max_new_tokens)
    return Sampled(
        token_ids=tokens,
        logps=_logps(choice.get("logprobs"), tokens),
        choices=_choices(
            choice.get("routed_experts"), len(request.prompt) + len(tokens) - 1, sizes
        ),
        version=weights.version,
    )


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise OddAnswer("expected one choice")
    return choices[0]


def _ids(found: Any, vocabulary: int) -> tuple[int, ...]:
    if not isinstance(found, list) or not found:
        raise OddAnswer(
            "expected token_ids, got none: the server does not know return_token_ids; vLLM does"
        )
    for token in found:
        if not isinstance(token, int) or not 0 <= token < vocabulary:
            raise OddAnswer(f"expected ids from 0 to {vocabulary - 1}, got {token!r}")
    return tuple(found)


def _check_end(tokens: Sequence[int], reason: Any, longest: int) -> None:
    early = [token for token in tokens[:-1] if token in STOP_IDS]
    if early:
        raise OddAnswer(f"token {early[0]} ends an answer, and this one goes on behind it")
    if len(tokens) > longest:
        raise OddAnswer(f"expected at most {longest} tokens, got {len(tokens)}")
    if tokens[-1] not in STOP_IDS and len(tokens) < longest:
        raise OddAnswer(
            f"it ends after {len(tokens)} of {longest} tokens without a token that ends it "
            f"(finish_reason {reason!r}): where its context is full, start the server with a "
            "larger --max-model-len"
        )


def _logps(found: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
    told = found.get("token_logprobs") if isinstance(found, dict) else None
    if not isinstance(told, list) or len(told) != len(tokens):
        count = len(told) if isinstance(told, list) else "none"
        raise OddAnswer(f"expected {len(tokens)} log-probabilities, got {count}")
    named = found.get("tokens")
    if named != [f"token_id:{token}" for token in tokens]:
        raise OddAnswer("its log-probabilities are of other tokens than its token_ids")
    for value in told:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value > 1e-3:
            raise OddAnswer(f"expected log-probabilities, got {value!r}")
    return np.minimum(np.asarray(told, dtype=np.float32), 0)


def _choices(found: Any, rows: int, sizes: Sizes) -> NDArray[np.uint8] | None:
    """Return ``[N + M - 1, L, K]`` uint8 of the file in NumPy's format, in base64."""
    if found is None:
        return None
    try:
        values = np.load(io.BytesIO(base64.b64decode(found, validate=True)), allow_pickle=False)
    except (TypeError, ValueError, EOFError, OSError) as error:
        raise OddAnswer(f"expected experts as a NumPy array in base64: {error}") from None
    shape = (rows, sizes.layers, sizes.experts_per_token)
    if values.shape != shape or values.dtype.kind not in "iu":
        raise OddAnswer(f"expected experts {shape}, got {values.shape} of {values.dtype}")
    if values.min() < 0 or values.max() >= sizes.experts:
        raise OddAnswer(f"expected experts from 0 to {sizes.experts - 1}, got {values.max()}")
    return values.astype(np.uint8)
