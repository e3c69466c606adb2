"""A server with OpenAI's API that is asked, and may be anyone's.

Whatever it answers, or does not, ends in one sentence that holds what it said: an answer has a
largest size and a time in which it must be whole, a redirection is not followed, a server that is
still loading is waited for, for a while. Client libraries of OpenAI's API were the alternative;
they take odd answers as they come.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from gptoss_tune.display import HIDDEN, one_line, without_credentials
from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.files.strict_json import parse

_TIMEOUT_S = 120.0  # for one whole answer, however slowly it drips
_LOADING_S = 600.0
_LOADING_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0
_LOADING = (429, 503)
LARGEST_ANSWER = 1 << 20  # bytes
_LONGEST_WORDS = 200
_Told = TypeVar("_Told")


@dataclass
class OpenAIServer:
    """One kind of question to a server.

    Attributes:
        endpoint: Path of the question below ``/v1/``.
        gives: What it answers with, for messages.
        of_model: Whether the question is about one model.
        option: Where its address was given.
        name_option: How another name of the model is given.
        proxies: Whether proxies of the environment are asked for it.
        url: Its address, with or without ``/v1``.
        model: The name it serves the model under.
        key: What it wants as bearer token; None sends none.
        timeout_s: For one answer.
        wait: Called with seconds where the server is loading.
        say: Called with a sentence that says that it is waited for, and why.
    """

    endpoint: ClassVar[str]
    gives: ClassVar[str]
    of_model: ClassVar[bool] = True
    option: ClassVar[str]
    name_option: ClassVar[str]
    proxies: ClassVar[bool] = True

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = _TIMEOUT_S
    wait: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda text: None
    _waited_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Refuse what is no address of a server, or no key that a header can hold."""
        if not is_address(self.url):
            raise CheckpointError(
                f"{self.option} is '{one_line(self.url)}'; expected the address of a server, for "
                "example http://localhost:8000"
            )
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise CheckpointError(
                "the API key holds line feeds or other than ASCII characters; set the variable to "
                "the key alone"
            )

    @property
    def address(self) -> str:
        """Where it is asked."""
        return f"{self.url.rstrip('/').removesuffix('/v1')}/v1/{self.endpoint}"

    def asked(self, wanted: Mapping[str, Any] | None) -> Any:
        """Return the parsed answer, waiting while the server loads; ``None`` asks with no fields.

        Raises:
            urllib.error.HTTPError: It answers with another status than 200.
            MachineError: It does not answer, or with something that is no JSON.
        """
        return self.patiently(
            lambda: post(
                self.address,
                wanted,
                key=self.key,
                timeout_s=self.timeout_s,
                proxies=self.proxies,
            )
        )

    def patiently(self, ask: Callable[[], _Told]) -> _Told:
        """Return what ``ask`` returns, asking again while the server loads.

        Raises:
            urllib.error.HTTPError: It answers with another status than 200.
            MachineError: It does not answer, or with something that is no JSON.
        """
        told = ""
        while True:
            try:
                return ask()
            except urllib.error.HTTPError as error:
                pause = _pause(error)
                if error.code not in _LOADING or self._waited_s + pause > _LOADING_S:
                    raise
                self._waited_s += pause
                if told != (told := said_with(error, self.key)):
                    self.say(
                        f"waiting: the server answers {told}; it is asked again every {pause:g} s, "
                        f"for up to {_LOADING_S / 60:g} minutes; Ctrl-C gives up"
                    )
                self.wait(pause)
            except TimeoutError:
                raise self.no_answer(f"no whole answer within {self.timeout_s:g} s") from None
            except ValueError as error:
                raise self.no_answer(f"the answer is no JSON: {error}") from None
            except (OSError, http.client.HTTPException) as error:
                raise self.no_answer(_cause(error)) from None

    def refused(self, error: urllib.error.HTTPError) -> MachineError:
        """Return the error of another status than 200, with the server's own words."""
        advice = {
            401: "; name the variable that holds its key with --api-key-env NAME",
            403: "; its key is named with --api-key-env NAME",
            503: f"; it was still loading after {_LOADING_S:g} s",
        }
        if self.of_model:
            advice[404] = f"; the name it serves the model under is given with {self.name_option}"
        return self.no_answer(said_with(error, self.key) + advice.get(error.code, ""))

    def odd(self, expected: str, answer: Any) -> MachineError:
        """Return the error of an answer that has another shape than ``expected``."""
        if isinstance(answer, dict) and "choices" not in answer and (words := words_in(answer)):
            return self.no_answer(f'it says: "{words}"')
        said = one_line(json.dumps(answer, ensure_ascii=False))[:_LONGEST_WORDS]
        return self.no_answer(f"expected {expected}; it answers {said}")

    def no_answer(self, reason: str) -> MachineError:
        """Return the error of a server that did not answer, without its key or a password."""
        asked = f" for model '{self.model}'" if self.of_model else ""
        text = (
            f"{self.address}: gave no {self.gives}{asked} ({reason}); expected a running server "
            f"with the OpenAI {self.endpoint.replace('/', ' ')} API, see `gptoss-tune serve-config`"
        )
        if self.key:
            text = text.replace(self.key, HIDDEN)
        return MachineError(without_credentials(text))


@dataclass
class ModelList(OpenAIServer):
    """The list of a server's models."""

    endpoint: ClassVar[str] = "models"
    gives: ClassVar[str] = "list of models"
    of_model: ClassVar[bool] = False
    option: ClassVar[str] = "--served"
    name_option: ClassVar[str] = "--served-name"

    def names(self) -> list[str]:
        """Return the names that it serves.

        Raises:
            MachineError: It does not answer, or with something that is no list of models.
        """
        try:
            told = self.asked(None)
        except urllib.error.HTTPError as error:
            raise self.refused(error) from None
        data = told.get("data") if isinstance(told, dict) else None
        if not isinstance(data, list):
            raise self.odd("data, a list of models", told)
        names = [one.get("id") for one in data if isinstance(one, dict)]
        return [name for name in names if isinstance(name, str)]


def is_address(url: str) -> bool:
    """Return whether a text is the address of a server."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.port != 0
        return right and (parts.hostname or "").isascii() and bool(parts.hostname)
    except ValueError:
        return False  # brackets, or a port that is no number


class TooLarge(ValueError):
    """An answer has more bytes than it may have."""


def post(
    address: str,
    wanted: Mapping[str, Any] | None,
    *,
    key: str | None = None,
    timeout_s: float,
    largest: int = LARGEST_ANSWER,
    proxies: bool = True,
) -> Any:
    """Return the parsed answer to one question, asked once.

    Args:
        address: Where it is asked.
        wanted: Its fields; ``None``: it is asked with none.
        key: Bearer token; ``None`` sends none.
        timeout_s: For the whole answer, however slowly it drips.
        largest: Bytes that the answer may have.
        proxies: Whether proxies of the environment are asked.

    Raises:
        urllib.error.HTTPError: The status is not 200; a redirection is none.
        TimeoutError: No whole answer in time.
        TooLarge: It has more bytes than that.
        ValueError: It is no JSON.
        OSError, http.client.HTTPException: There is no answer.
    """

    def ask() -> bytes:
        asked = opened(address, wanted, key=key, timeout_s=timeout_s, proxies=proxies)
        with asked as response:
            raw = response.read(largest + 1)
        if len(raw) > largest:
            raise TooLarge(f"more than {largest} bytes")
        return raw

    return parse(_within(timeout_s, ask))


def opened(
    address: str,
    wanted: Mapping[str, Any] | None,
    *,
    key: str | None,
    timeout_s: float,
    proxies: bool = True,
) -> http.client.HTTPResponse:
    """Return the response to one question, of which nothing is read yet; close it.

    Args:
        address: Where it is asked.
        wanted: Its fields; ``None``: it is asked with none.
        key: Bearer token; ``None`` sends none.
        timeout_s: For each piece of it.
        proxies: Whether proxies of the environment are asked.

    Raises:
        urllib.error.HTTPError: The status is not 200; a redirection is none.
        OSError, http.client.HTTPException: There is no answer.
    """
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    data = None if wanted is None else json.dumps(dict(wanted)).encode()
    request = urllib.request.Request(address, data=data, headers=headers)
    direct = [] if proxies else [urllib.request.ProxyHandler({})]
    return urllib.request.build_opener(_NoRedirect, *direct).open(request, timeout=timeout_s)


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


def _cause(error: Exception) -> str:
    """Return what happened, without the brackets and numbers that Python puts around it."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    said = inner.strerror if isinstance(inner, OSError) else None
    return said or str(inner) or type(inner).__name__


def _pause(error: urllib.error.HTTPError) -> float:
    """Return the seconds to wait for a server that says it is busy."""
    asked = error.headers.get("retry-after") or ""
    return min(float(asked), _LONGEST_PAUSE_S) if asked.isdigit() else _LOADING_PAUSE_S


def said_with(error: urllib.error.HTTPError, key: str | None = None) -> str:
    """Return the status of a refusal with the server's own words.

    Args:
        error: As ``post`` raises it.
        key: The one it was asked with; it is hidden where the words hold it.
    """
    try:
        raw = _within(_LOADING_PAUSE_S, lambda: error.read(LARGEST_ANSWER))
    except (OSError, http.client.HTTPException, ValueError):
        raw = b""
    return said(error.code, raw, key)


def said(status: int, raw: bytes, key: str | None = None) -> str:
    """Return a status with the words of the answer that came with it, without the ``key``."""
    if key:
        raw = raw.replace(key.encode(), HIDDEN.encode())  # before it is cut short
    try:
        words = words_in(parse(raw))
    except ValueError:
        words = one_line(" ".join(raw.decode("utf-8", "replace").split()))[:_LONGEST_WORDS]
    return f'HTTP {status}, it says: "{words}"' if words else f"HTTP {status}"


def words_in(answer: Any) -> str:
    """Return the message in an error as the servers write it; empty where there is none."""
    for key in ("error", "message", "detail"):
        value = answer.get(key) if isinstance(answer, dict) else None
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str) and value:
            return one_line(" ".join(value.split()))[:_LONGEST_WORDS]
    return ""
