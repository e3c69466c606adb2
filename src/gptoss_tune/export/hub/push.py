"""Upload to the Hugging Face Hub: private unless asked otherwise, repeatable, silent about tokens.

One commit holds everything. The client asks the Hub which files it has before it sends one, so a
push that was cut off is repeated with the same command and sends what is missing. Rate limits,
server errors and cut connections are waited out a few times; everything else stops with one
sentence that says what to do. A token never enters a message, a card or a file: files that hold one
are refused, and any text from the client is cleaned before it is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from gptoss_tune.display import CREDENTIAL, HIDDEN, without_credentials
from gptoss_tune.errors import CheckpointError, HubError

_TEXT_FILES = (".json", ".jsonl", ".md", ".yaml", ".yml", ".txt", ".jinja", ".svg", "")
_TRIES = 5
_LONGEST_WAIT_S = 300.0
_WAITED_OUT = {408, 429, 500, 502, 503, 504}
_ADVICE = {
    401: "not logged in, or the token is no longer valid; run `hf auth login`",
    403: "the token may not write there; use a token with write access to this repository",
    404: "no such user or organisation, or the token cannot see it; check --repo",
    409: "the repository changed meanwhile, or its name is taken; run the same command again",
    413: "a file is larger than the Hub takes; merge with a smaller --max-shard-size",
}


@dataclass(frozen=True)
class Pushed:
    """What a push did: the page of the repository, the commit, and the number of its files."""

    url: str
    commit: str
    files: int


def push(
    files: Mapping[str, Path | bytes],
    repo: str,
    *,
    public: bool = False,
    message: str,
    endpoint: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Upload ``files`` to the model repository ``repo`` as one commit.

    Args:
        files: Local file or content by path in the repository.
        repo: ``owner/name``; created when it does not exist.
        public: Create it public, or allow that it is.
        message: The commit's message.
        endpoint: Another hub than the usual one.
        wait: Called with seconds before a retry.

    Raises:
        CheckpointError: A file holds something that looks like a token.
        HubError: Not logged in, not allowed, the repository is public and ``public`` was not given,
            or the Hub did not answer in five tries.
    """
    refuse_tokens(files)
    api = HfApi(endpoint=endpoint)

    def attempt() -> Pushed:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo).private:
            raise HubError(
                f"{repo} exists and is public; say --public to upload to it, or choose another "
                "--repo"
            )
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in sorted(files.items())
        ]
        commit = api.create_commit(repo, operations, commit_message=message)
        return Pushed(without_credentials(f"{api.endpoint}/{repo}"), commit.oid, len(files))

    return _persist(attempt, repo, wait)


def refuse_tokens(files: Mapping[str, Path | bytes]) -> None:
    """Refuse to upload a text file that holds something that looks like a token.

    Raises:
        CheckpointError: Names the file, not the token.
    """
    for name, content in files.items():
        if Path(name).suffix not in _TEXT_FILES:
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        if CREDENTIAL.search(data.decode("utf-8", errors="replace")):
            raise CheckpointError(
                f"{name}: holds something that looks like an access token; nothing was uploaded. "
                "Remove it there, and revoke the token"
            )


def without_tokens(text: str) -> str:
    """Return ``text`` with anything that is, or looks like, a token replaced."""
    token = get_token()
    if token:
        text = text.replace(token, HIDDEN)
    return without_credentials(text)


def _persist(attempt: Callable[[], Pushed], repo: str, wait: Callable[[float], None]) -> Pushed:
    """Run ``attempt`` until it succeeds, at most five times where waiting can help."""
    for number in range(1, _TRIES + 1):
        try:
            return attempt()
        except (HTTPError, RuntimeError, OSError, ValueError) as error:
            if isinstance(error, HubError):
                raise
            status, pause = _judge(error)
            if number == _TRIES or pause is None:
                # Without the chain: the client's errors carry requests, and those carry headers.
                raise _explained(error, status, repo) from None
            wait(min(_LONGEST_WAIT_S, max(pause, 2.0 ** (number - 1))))
    raise AssertionError("the last try returns or raises")


def _judge(error: BaseException) -> tuple[int | None, float | None]:
    """Return the HTTP status, if any, and the least seconds to wait; None when waiting is vain."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status not in _WAITED_OUT:
                return status, None
            return status, _retry_after(cause.response.headers)
        if isinstance(cause, HTTPError | ConnectionError):
            return None, 0.0
        cause = cause.__cause__
    return None, None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that ``Retry-After`` asks for, 0 without one."""
    value = headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0


def _explained(error: BaseException, status: int | None, repo: str) -> HubError:
    """Return the one sentence for the user."""
    if status in _ADVICE:
        return HubError(f"cannot push to {repo}: {_ADVICE[status]} (HTTP {status})")
    if status in _WAITED_OUT:
        return HubError(
            f"cannot push to {repo}: the Hub answered HTTP {status} in each of {_TRIES} tries; run "
            "the same command later, what was uploaded is not sent again"
        )
    said = without_tokens(str(error)).splitlines()
    detail = f"{type(error).__name__}: {said[0] if said else ''}"
    return HubError(
        f"cannot push to {repo}: {detail}; check the connection and run the same command again, "
        "what was uploaded is not sent again"
    )
