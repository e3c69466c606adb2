"""One question to a server's completions API: the likeliest next token of a prompt.

The server is a stranger. Whatever it answers, or does not, ends in one sentence that holds what it
said: every value is looked at before it is used, an answer has a largest size and a time in which
it must be whole, a redirection is not followed, a server that is still loading is waited for, for a
while. Client libraries of OpenAI's API were the alternative; they take odd answers as they come.
"""

from __future__ import annotations

import http.client
import json
import math
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from gptoss_tune.display import HIDDEN, one_line, without_credentials
from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.files.strict_json import parse

_TIMEOUT_S = 120.0  # for one whole answer, however slowly it drips
_LOADING_S = 600.0
_LOADING_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0
_LOADING = (429, 503)
_LARGEST_ANSWER = 1 << 20
_LONGEST_WORDS = 200
_LOWEST, _HIGHEST = -1e5, 1e-3  # of a log-probability in nats; some servers write -9999 for -inf


@dataclass
class CompletionsServer:
    """A server with OpenAI's completions API.

    Attributes:
        url: Its address, with or without ``/v1``.
        model: The name it serves the model under.
        key: What it wants as bearer token; None sends none.
        timeout_s: For one answer.
        wait: Called with seconds where the server is loading.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = _TIMEOUT_S
    wait: Callable[[float], None] = time.sleep
    _waited_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Refuse what is no address of a server, or no key that a header can hold."""
        try:
            parts = urlsplit(self.url)
            right = parts.scheme in ("http", "https") and parts.port != 0
            right = right and (parts.hostname or "").isascii() and bool(parts.hostname)
        except ValueError:
            right = False  # brackets, or a port that is no number
        if not right:
            raise CheckpointError(
                f"--served is '{one_line(self.url)}'; expected the address of a server, for "
                "example http://localhost:8000"
            )
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise CheckpointError(
                "the API key holds line feeds or other than ASCII characters; set the variable to "
                "the key alone"
            )

    @property
    def address(self) -> str:
        """Where completions are asked for."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1/completions"

    def first_token(self, prompt: str) -> tuple[str, float | None]:
        """Return the likeliest next token as text, with its log-probability where it is told.

        Raises:
            MachineError: No answer, no whole answer in time, or one of another shape.
        """
        wanted = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        try:
            answer = self._asked({**wanted, "logprobs": 1})
        except urllib.error.HTTPError as error:
            if error.code not in (400, 422):
                raise self._no_answer(_said_with(error)) from None
            answer = self._without_logprobs(wanted)
        return self._choice_in(answer)

    def _without_logprobs(self, wanted: dict[str, Any]) -> Any:
        """Ask a server that refuses ``logprobs`` (transformers serve does) for the text alone."""
        try:
            return self._asked(wanted)
        except urllib.error.HTTPError as error:
            raise self._no_answer(_said_with(error)) from None

    def _asked(self, wanted: dict[str, Any]) -> Any:
        """Return the parsed answer, waiting while the server loads.

        Raises:
            urllib.error.HTTPError: It answers with another status than 200.
            MachineError: It does not answer, or with something that is no JSON.
        """
        while True:
            try:
                return parse(_within(self.timeout_s, lambda: self._post(wanted)))
            except urllib.error.HTTPError as error:
                pause = _pause(error)
                if error.code not in _LOADING or self._waited_s + pause > _LOADING_S:
                    raise
                self._waited_s += pause
                self.wait(pause)
            except TimeoutError:
                raise self._no_answer(f"no whole answer within {self.timeout_s:g} s") from None
            except ValueError as error:
                raise self._no_answer(f"the answer is no JSON: {error}") from None
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer(str(error) or type(error).__name__) from None

    def _post(self, wanted: dict[str, Any]) -> bytes:
        headers = {"content-type": "application/json"}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            self.address, data=json.dumps(wanted).encode(), headers=headers
        )
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout_s) as response:
            raw = response.read(_LARGEST_ANSWER + 1)
        if len(raw) > _LARGEST_ANSWER:
            raise ValueError(f"more than {_LARGEST_ANSWER} bytes")
        return raw

    def _choice_in(self, answer: Any) -> tuple[str, float | None]:
        """Return text and log-probability of the first choice.

        Raises:
            MachineError: The answer has another shape.
        """
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        text = choice.get("text") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(text, str):
            if isinstance(answer, dict) and (words := _words(answer)):
                raise self._no_answer(f'it says: "{words}"')
            raise self._odd("choices[0].text, a text", answer)
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
            raise self._odd(expected, answer)
        value = values[0] if values else None
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._odd(expected, answer)
        if not (math.isfinite(value) and _LOWEST <= value <= _HIGHEST):
            raise self._odd(expected, answer)
        return float(value)

    def _odd(self, expected: str, answer: Any) -> MachineError:
        said = one_line(json.dumps(answer, ensure_ascii=False))[:_LONGEST_WORDS]
        return self._no_answer(f"expected {expected}; it answers {said}")

    def _no_answer(self, reason: str) -> MachineError:
        text = (
            f"{self.address}: gave no completion for model '{self.model}' ({reason}); expected a "
            "running server with the OpenAI completions API, see `gptoss-tune serve-config`"
        )
        if self.key:
            text = text.replace(self.key, HIDDEN)
        return MachineError(without_credentials(text))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Stays with the server that was named: its answer cannot send the prompts elsewhere."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Return no request to follow with, so that the redirection is an error."""
        return None


def _within(seconds: float, ask: Callable[[], bytes]) -> bytes:
    """Return what ``ask`` returns, or raise what it raises, within a time that holds for the whole.

    A socket's own timeout begins anew with every byte. The thread is left behind where time is up:
    it ends with the connection, or with the process.

    Raises:
        TimeoutError: It took longer.
    """
    done: queue.SimpleQueue[tuple[bytes, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((ask(), None))
        except BaseException as error:
            done.put((b"", error))

    threading.Thread(target=work, daemon=True).start()
    try:
        answer, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return answer


def _pause(error: urllib.error.HTTPError) -> float:
    """Return the seconds to wait for a server that says it is busy."""
    asked = error.headers.get("retry-after") or ""
    return min(float(asked), _LONGEST_PAUSE_S) if asked.isdigit() else _LOADING_PAUSE_S


def _said_with(error: urllib.error.HTTPError) -> str:
    """Return the status with the server's own words, and what helps where it is known."""
    try:
        raw = _within(_LOADING_PAUSE_S, lambda: error.read(_LARGEST_ANSWER))
    except (OSError, http.client.HTTPException, ValueError):
        raw = b""
    try:
        words = _words(parse(raw))
    except ValueError:
        words = one_line(" ".join(raw.decode("utf-8", "replace").split()))[:_LONGEST_WORDS]
    said = f'HTTP {error.code}, it says: "{words}"' if words else f"HTTP {error.code}"
    advice = {
        401: "; name the variable that holds its key with --api-key-env NAME",
        403: "; its key is named with --api-key-env NAME",
        404: "; the name it serves the model under is given with --served-name",
        503: f"; it was still loading after {_LOADING_S:g} s",
    }
    return said + advice.get(error.code, "")


def _words(answer: Any) -> str:
    """Return the message in an error as the servers write it; empty where there is none."""
    for key in ("error", "message", "detail"):
        value = answer.get(key) if isinstance(answer, dict) else None
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str) and value:
            return one_line(" ".join(value.split()))[:_LONGEST_WORDS]
    return ""
