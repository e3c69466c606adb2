"""Verification of a running server, over its OpenAI API: it serves the tuned model.

Servers drop an adapter whose keys match nothing without a word, or load another folder than one
thinks. So the server is asked for the likeliest next token of many short prompts, and each answer
is judged by the local model: how many nats likelier is its own first choice? For the right model
that is rounding, and a server that is further off is wrong, whoever it serves. One that is not may
still be the bare base, where the fine-tuning changed no first choice: then the log-probabilities
decide where the server tells them, and nothing is proved where it does not.

One token a prompt, because from the second on two engines may differ for a rounding's sake, and a
token's text need not come back as the same token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from gptoss_tune.export.verify.completions import CompletionsServer
from gptoss_tune.export.verify.layerwise import LayerwiseModel
from gptoss_tune.export.verify.verify import Check
from gptoss_tune.harmony.tokenizer_file import open_tokenizer
from gptoss_tune.weights import Checkpoint

FLOOR_NATS = 0.02  # a served token this close to the local first choice is the same choice
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


Answers = Sequence[tuple[str, float | None]]
"""To each of ``SERVED_PROMPTS``: the text of its next token, and its log-probability or None."""


def ask_server(server: CompletionsServer) -> Answers:
    """Return what a server answers to ``SERVED_PROMPTS``.

    Raises:
        MachineError: It does not answer, or answers no completion.
    """
    return [server.first_token(prompt) for prompt in SERVED_PROMPTS]


def verify_served(
    answers: Answers, tuned: Checkpoint, base: Checkpoint, *, device: str = "cpu"
) -> Check:
    """Compare a server's answers with the local model and with the bare base.

    Args:
        answers: From ``ask_server``.
        tuned: The merged checkpoint that should be served.
        base: The base that may be served by mistake.
        device: Where to compute the local logits.
    """
    tokenizer = open_tokenizer(tuned.path / "tokenizer.json")
    prompts = [tokenizer.encode(p, add_special_tokens=False).ids for p in SERVED_PROMPTS]
    tokens = [one_token(tokenizer, text) for text, _ in answers]
    read = [i for i, token in enumerate(tokens) if token is not None]
    if len(read) < len(tokens) / 2:
        detail = f"cannot tell: only {len(read)} of {len(tokens)} answers are the text of one token"
        return Check("served", None, detail, required=True, of_server=True)
    exact = _last_log_probabilities(tuned, prompts, device, torch.float32)[read]
    rounded = _last_log_probabilities(tuned, prompts, device, torch.bfloat16)[read]
    bare = _last_log_probabilities(base, prompts, device, torch.float32)[read]
    served = torch.tensor([tokens[i] for i in read])
    figures: dict[str, Any] = {
        "tokens": len(read),
        "gap": gap(exact, served),
        "noise": gap(exact, rounded.argmax(-1)),
        "gap_if_base": gap(exact, bare.argmax(-1)),
    }
    told = [(row, value) for row, i in enumerate(read) if (value := answers[i][1]) is not None]
    if told:
        rows = torch.tensor([row for row, _ in told])
        values = torch.tensor([value for _, value in told])
        figures |= _distances(exact[rows], rounded[rows], bare[rows], served[rows], values)
    if not all(math.isfinite(value) for value in figures.values()):
        return Check("served", False, "the local model computes NaN or infinity", required=True)
    return _judged(figures)


def _judged(figures: dict[str, Any]) -> Check:
    """Judge the gap alone first: a server far from the tuned model is wrong, whoever it serves."""
    allowed = max(2 * figures["noise"], FLOOR_NATS)
    detail = (
        f"the served first choices are {figures['gap']:.4f} nats below the tuned model's own on "
        f"{figures['tokens']} prompts (rounding alone {figures['noise']:.4f}, the bare base "
        f"{figures['gap_if_base']:.4f})"
    )
    right, told_apart = figures["gap"] <= allowed, figures["gap_if_base"] > allowed
    if "distance" in figures:
        detail += (
            f"; log-probabilities differ by {figures['distance']:.4f} on average (rounding alone "
            f"{figures['distance_noise']:.4f}, the bare base {figures['distance_if_base']:.4f})"
        )
        near = max(2 * figures["distance_noise"], FLOOR_NATS)
        right = right and figures["distance"] <= near
        told_apart = told_apart or figures["distance_if_base"] > 2 * near
    if right and not told_apart:
        detail = f"cannot tell tuned model and base apart: {detail}"
        return Check("served", None, detail, figures, required=True, of_server=True)
    return Check("served", right, detail, figures, required=True, of_server=True)


def gap(log_probabilities: torch.Tensor, tokens: torch.Tensor) -> float:
    """Return how far below the likeliest token ``tokens`` are, on average, in nats."""
    chosen = log_probabilities.gather(1, tokens[:, None])[:, 0]
    return (log_probabilities.max(-1).values - chosen).mean().item()


def _distances(
    exact: torch.Tensor,
    rounded: torch.Tensor,
    bare: torch.Tensor,
    tokens: torch.Tensor,
    told: torch.Tensor,
) -> dict[str, float]:
    """Return how far the served log-probabilities are off, and rounding's and the base's would be.

    Args:
        exact: ``[n, V]``, the tuned model's log-probabilities; ``rounded`` in bf16, ``bare`` of the
            base.
        rounded: See ``exact``.
        bare: See ``exact``.
        tokens: ``[n]``, what was served.
        told: ``[n]``, its log-probability as the server tells it, in nats.
    """
    chosen = [each.gather(1, tokens[:, None])[:, 0] for each in (exact, rounded, bare)]
    names = ("distance_noise", "distance_if_base", "distance")
    others = (chosen[1], chosen[2], told)
    return {
        name: (chosen[0] - other).abs().mean().item()
        for name, other in zip(names, others, strict=True)
    }


def _last_log_probabilities(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], device: str, dtype: torch.dtype
) -> torch.Tensor:
    """Return ``[prompts, V]``: log-probabilities of the token after each prompt."""
    logits = LayerwiseModel(checkpoint, device=device, dtype=dtype).last_logits(prompts)
    return logits.log_softmax(-1)


def one_token(tokenizer: Tokenizer, text: str) -> int | None:
    """Return the token whose text this is, or None when it is not exactly one."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return ids[0] if len(ids) == 1 and "\ufffd" not in text else None
