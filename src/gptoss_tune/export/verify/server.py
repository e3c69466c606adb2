"""Verification of a running server, over its OpenAI API: it serves the tuned model.

Servers drop an adapter whose keys match nothing without a word, or load another folder than one
thinks. So the server is asked for the likeliest next token of many short prompts, and each answer
is judged by the local model: how many nats likelier is its own first choice? For the right model
that is rounding; for the bare base it is what the fine-tuning changed. Where the server also tells
its log-probability, that is compared too.

One token a prompt, because from the second on two engines may differ for a rounding's sake, and a
token's text need not come back as the same token.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from gptoss_tune.errors import MachineError
from gptoss_tune.export.verify.layerwise import LayerwiseModel
from gptoss_tune.export.verify.verify import Check
from gptoss_tune.files.strict_json import parse
from gptoss_tune.harmony.tokenizer_file import open_tokenizer
from gptoss_tune.weights import Checkpoint

_TIMEOUT_S = 120.0
_LARGEST_ANSWER = 1 << 20
_FLOOR_NATS = 0.02  # a served token this close to the local first choice is the same choice
_SUBJECTS = (
    *("the sea", "a bicycle", "prime numbers", "bread", "the moon", "a sorting algorithm"),
    *("winter", "a lighthouse", "gravity", "tea", "a violin", "the water cycle"),
)
_FORMS = (
    "<|start|>user<|message|>Tell me about {}.<|end|><|start|>assistant<|channel|>analysis"
    "<|message|>",
    "<|start|>user<|message|>Describe {} in one sentence.<|end|><|start|>assistant"
    "<|channel|>final<|message|>",
)
SERVED_PROMPTS = tuple(form.format(subject) for form in _FORMS for subject in _SUBJECTS)


def verify_served(
    url: str, model: str, tuned: Checkpoint, base: Checkpoint, *, device: str = "cpu"
) -> Check:
    """Compare a server with the local model and with the bare base.

    Args:
        url: The server's address, with or without ``/v1``.
        model: The name it serves the model under.
        tuned: The merged checkpoint that should be served.
        base: The base that may be served by mistake.
        device: Where to compute the local logits.

    Raises:
        MachineError: The server does not answer, or answers no completion.
    """
    tokenizer = open_tokenizer(tuned.path / "tokenizer.json")
    prompts = [tokenizer.encode(p, add_special_tokens=False).ids for p in SERVED_PROMPTS]
    answers = [_complete(url, model, prompt) for prompt in SERVED_PROMPTS]
    tokens = [_one_token(tokenizer, text) for text, _ in answers]
    read = [i for i, token in enumerate(tokens) if token is not None]
    if len(read) < len(tokens) / 2:
        return Check(
            "served",
            None,
            f"cannot tell: only {len(read)} of {len(tokens)} answers are the text of one token",
        )
    exact = _last_log_probabilities(tuned, prompts, device, torch.float32)
    rounded = _last_log_probabilities(tuned, prompts, device, torch.bfloat16)
    bare = _last_log_probabilities(base, prompts, device, torch.float32)
    served = torch.tensor([tokens[i] for i in read])
    figures: dict[str, Any] = {
        "tokens": len(read),
        "gap": _gap(exact[read], served),
        "noise": _gap(exact[read], rounded[read].argmax(-1)),
        "gap_if_base": _gap(exact[read], bare[read].argmax(-1)),
    }
    told = [(i, answers[i][1]) for i in read if answers[i][1] is not None]
    if told:
        figures.update(_log_probability_distance(exact, rounded, tokens, told))
    return _judged(figures)


def _judged(figures: dict[str, Any]) -> Check:
    allowed = max(2 * figures["noise"], _FLOOR_NATS)
    detail = (
        f"the served first choices are {figures['gap']:.4f} nats below the tuned model's own on "
        f"{figures['tokens']} prompts (rounding alone {figures['noise']:.4f}, the bare base "
        f"{figures['gap_if_base']:.4f})"
    )
    if figures["gap_if_base"] <= allowed:
        return Check("served", None, f"cannot tell tuned model and base apart: {detail}", figures)
    passed = figures["gap"] <= allowed
    if "distance" in figures:
        detail += (
            f"; log-probabilities differ by {figures['distance']:.4f} on average (rounding alone "
            f"{figures['distance_noise']:.4f})"
        )
        passed = passed and figures["distance"] <= max(2 * figures["distance_noise"], _FLOOR_NATS)
    return Check("served", passed, detail, figures)


def _gap(log_probabilities: torch.Tensor, tokens: torch.Tensor) -> float:
    """Return how far below the likeliest token ``tokens`` are, on average, in nats."""
    chosen = log_probabilities.gather(1, tokens[:, None])[:, 0]
    return (log_probabilities.max(-1).values - chosen).mean().item()


def _log_probability_distance(
    exact: torch.Tensor,
    rounded: torch.Tensor,
    tokens: Sequence[int | None],
    told: Sequence[tuple[int, float | None]],
) -> dict[str, float]:
    """Return the mean distance of the served log-probabilities, and that of rounding alone."""
    pairs = [(i, tokens[i], value) for i, value in told]
    distance = sum(abs(exact[i, t].item() - v) for i, t, v in pairs if v is not None and t)
    noise = sum(abs(exact[i, t].item() - rounded[i, t].item()) for i, t, _ in pairs if t)
    return {"distance": distance / len(pairs), "distance_noise": noise / len(pairs)}


def _last_log_probabilities(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], device: str, dtype: torch.dtype
) -> torch.Tensor:
    """Return ``[prompts, V]``: log-probabilities of the token after each prompt."""
    logits = LayerwiseModel(checkpoint, device=device, dtype=dtype).last_logits(prompts)
    return logits.log_softmax(-1)


def _one_token(tokenizer: Tokenizer, text: str) -> int | None:
    """Return the token whose text this is, or None when it is not exactly one."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return ids[0] if len(ids) == 1 and "\ufffd" not in text else None


def _complete(url: str, model: str, prompt: str) -> tuple[str, float | None]:
    """Return the server's likeliest next token as text, with its log-probability if it tells."""
    wanted = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    address = url.rstrip("/").removesuffix("/v1") + "/v1/completions"
    try:
        choice = _post(address, {**wanted, "logprobs": 1})
    except urllib.error.HTTPError as error:
        if error.code not in (400, 422):
            raise _no_answer(address, model, error) from error
        choice = _retry_without_logprobs(address, model, wanted)
    except (OSError, ValueError, LookupError) as error:
        raise _no_answer(address, model, error) from error
    values = (choice.get("logprobs") or {}).get("token_logprobs") or [None]
    return choice["text"], values[0]


def _retry_without_logprobs(address: str, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Ask a server that refuses ``logprobs`` (transformers serve does) for the text alone."""
    try:
        return _post(address, wanted)
    except (OSError, ValueError, LookupError) as error:
        raise _no_answer(address, model, error) from error


def _post(address: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice of a completion."""
    request = urllib.request.Request(
        address,
        data=json.dumps(value).encode(),
        headers={"content-type": "application/json"},
    )
    with _OPENER.open(request, timeout=_TIMEOUT_S) as response:
        return parse(response.read(_LARGEST_ANSWER))["choices"][0]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Stays with the server that was named: its answer cannot send the prompts elsewhere."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Return no request to follow with, so that the redirection is an error."""
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _no_answer(address: str, model: str, error: Exception) -> MachineError:
    return MachineError(
        f"{address}: gave no completion for model '{model}' ({error}); expected a running server "
        "with the OpenAI completions API, see `gptoss-tune serve-config`"
    )
