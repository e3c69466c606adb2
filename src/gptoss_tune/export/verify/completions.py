"""One question to a server's completions API: the likeliest next token of a prompt.

The server is a stranger: every value is looked at before it is used.
"""

from __future__ import annotations

import math
import urllib.error
from dataclasses import dataclass
from typing import Any, ClassVar

from gptoss_tune.export.openai_server import OpenAIServer

_LOWEST, _HIGHEST = -1e5, 1e-3  # of a log-probability in nats; some servers write -9999 for -inf


@dataclass
class CompletionsServer(OpenAIServer):
    """A server with OpenAI's completions API."""

    endpoint: ClassVar[str] = "completions"
    gives: ClassVar[str] = "completion"
    option: ClassVar[str] = "--served"
    name_option: ClassVar[str] = "--served-name"

    def first_token(self, prompt: str) -> tuple[str, float | None]:
        """Return the likeliest next token as text, with its log-probability where it is told.

        Raises:
            MachineError: No answer, no whole answer in time, or one of another shape.
        """
        wanted = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        try:
            answer = self.asked({**wanted, "logprobs": 1})
        except urllib.error.HTTPError as error:
            if error.code not in (400, 422):
                raise self.refused(error) from None
            answer = self._without_logprobs(wanted)
        return self._choice_in(answer)

    def _without_logprobs(self, wanted: dict[str, Any]) -> Any:
        """Ask a server that refuses ``logprobs`` (transformers serve does) for the text alone."""
        try:
            return self.asked(wanted)
        except urllib.error.HTTPError as error:
            raise self.refused(error) from None

    def _choice_in(self, answer: Any) -> tuple[str, float | None]:
        """Return text and log-probability of the first choice.

        Raises:
            MachineError: The answer has another shape.
        """
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        text = choice.get("text") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(text, str):
            raise self.odd("choices[0].text, a text", answer)
        return text, self._log_probability(choice.get("logprobs"), answer)

    def _log_probability(self, told: Any, answer: Any) -> float | None:
        """Return what is told of the first token; None where nothing is."""
        if told is None:
            return None
        expected = "logprobs.token_logprobs, a list of numbers of at most 0"
        values = told.get("token_logprobs") if isinstance(told, dict) else None
        if values is None and isinstance(told, dict):
            values = told.get("content")  # as chat completions tell them, and llama.cpp here too
            if isinstance(values, list):
                values = [v.get("logprob") if isinstance(v, dict) else v for v in values]
        if values is None and isinstance(told, dict):
            return None
        if not isinstance(values, list):
            raise self.odd(expected, answer)
        value = values[0] if values else None
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.odd(expected, answer)
        if not (math.isfinite(value) and _LOWEST <= value <= _HIGHEST):
            raise self.odd(expected, answer)
        return float(value)
