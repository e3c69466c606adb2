"""What the Hub answers to a push: waited out where that helps, else said in its own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from gptoss_tune.display import HIDDEN, one_line, without_credentials
from gptoss_tune.errors import CheckpointError, HubError

_TRIES = 5
_LONGEST_WAIT_S = 300.0
_WAITED_OUT = {408, 412, 429, 500, 502, 503, 504}
_LONGEST_WORDS = 300
_ADVICE = {
    400: "the Hub does not take the request",
    401: "not logged in, or the token is no longer valid; run `hf auth login`",
    402: "the Hub asks for payment; free storage there, or upgrade the account of the owner",
    403: "the token may not write there; use a token with write access to this repository",
    404: "no such user or organisation, or the token cannot see it; check --repo",
    409: "the repository changed meanwhile, or its name is taken; run the same command again",
    413: "a file is larger than the Hub takes; merge with a smaller --max-shard-size",
}
_NO_STORAGE = (
    "the storage of its owner is used up; delete files or repositories there, upgrade the account, "
    "or push to another --repo"
)

Result = TypeVar("Result")


def patiently(
    attempt: Callable[[], Result],
    repo: str,
    wait: Callable[[float], None],
    refused: Callable[[], None] = lambda: None,
) -> Result:
    """Run ``attempt`` until it succeeds, at most five times where waiting can help.

    Args:
        attempt: Asks the Hub.
        repo: Its repository, for messages.
        wait: Called with seconds before a retry.
        refused: Called once where repeating the command cannot help.

    Raises:
        HubError: What the Hub refused, in its own words.
    """
    for number in range(1, _TRIES + 1):
        try:
            return attempt()
        except (HTTPError, RuntimeError, OSError, ValueError) as error:
            if isinstance(error, (HubError, CheckpointError)):
                _try(refused)
                raise
            status, pause = _judge(error)
            if number == _TRIES or pause is None:
                if pause is None:
                    _try(refused)
                # Without the chain: the client's errors carry requests, and those carry headers.
                raise _explained(error, status, repo) from None
            wait(min(_LONGEST_WAIT_S, max(pause, 2.0 ** (number - 1))))
    raise AssertionError("the last try returns or raises")


def without_tokens(text: str) -> str:
    """Return ``text`` with anything that is, or looks like, a token replaced."""
    token = get_token()
    if token:
        text = text.replace(token, HIDDEN)
    return without_credentials(text)


def _try(clean_up: Callable[[], None]) -> None:
    """Clean up after a refusal, which matters more than what is left behind."""
    try:
        clean_up()
    except (HTTPError, RuntimeError, OSError, ValueError):
        return


def _judge(error: BaseException) -> tuple[int | None, float | None]:
    """Return the HTTP status, if any, and the least seconds to wait; None when waiting is vain."""
    answer = _answer_in(error)
    if isinstance(answer, HfHubHTTPError):
        status = answer.response.status_code
        if status not in _WAITED_OUT:
            return status, None
        return status, _retry_after(answer.response.headers)
    return None, 0.0 if answer is not None else None


def _answer_in(error: BaseException) -> BaseException | None:
    """Return the first of an error and its causes that tells of an answer, or of none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HTTPError | ConnectionError):
            return cause
        cause = cause.__cause__
    return None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that ``Retry-After`` asks for, 0 without one."""
    value = headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0


def _explained(error: BaseException, status: int | None, repo: str) -> HubError:
    """Return the one sentence for the user."""
    words = _words_of(error)
    said = f'; the Hub says: "{words}"' if words else ""
    if status in _WAITED_OUT:
        return HubError(
            f"cannot push to {repo}: the Hub answered HTTP {status} in each of {_TRIES} tries"
            f"{said}; run the same command later, what was uploaded is not sent again"
        )
    if status is not None:
        advice = _ADVICE.get(status, "the Hub refuses it")
        if "storage" in words.lower() and status in (400, 402, 403, 413):
            advice = _NO_STORAGE
        return HubError(f"cannot push to {repo}: {advice} (HTTP {status}){said}")
    lines = without_tokens(str(error)).splitlines()
    detail = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return HubError(
        f"cannot push to {repo}: {detail}; check the connection and run the same command again, "
        "what was uploaded is not sent again"
    )


def _words_of(error: BaseException) -> str:
    """Return what the Hub itself said: on one line, cut, without tokens."""
    answer = _answer_in(error)
    words = getattr(answer, "server_message", None)
    if not isinstance(words, str):
        return ""
    return one_line(without_tokens(" ".join(words.split())))[:_LONGEST_WORDS]
