"""Upload to the Hugging Face Hub: private unless asked otherwise, repeatable, silent about tokens.

One commit holds everything, deletions too, and is made on the state of the repository that was
looked at. The client asks the Hub which files it has before it sends one, so a push that was cut
off is repeated with the same command and sends what is missing. Rate limits, server errors and cut
connections are waited out a few times; everything else stops with one sentence that holds the Hub's
own words. A repository that was made for a push which the Hub then refuses is removed again. A
token never enters a message, a card or a file: files that hold one are refused, and any text from
the client is cleaned before it is shown.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from gptoss_tune.display import CREDENTIAL, without_credentials
from gptoss_tune.errors import CheckpointError, RepositoryError
from gptoss_tune.export.hub.answers import patiently
from gptoss_tune.export.hub.card_text import is_of_a_push, parse_card, updated_card
from gptoss_tune.export.hub.name import check_name
from gptoss_tune.export.hub.repository import (
    CARD,
    Changes,
    changes_to,
    check_rights,
)

_TEXT_FILES = (".json", ".jsonl", ".md", ".yaml", ".yml", ".txt", ".jinja", ".svg", "")
_LARGEST_CARD = 4 << 20


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        url: The page of the repository.
        commit: The commit that it is at.
        files: Number of files that were written.
        deleted: Files that went in the same commit.
        kept: Files of others that stayed.
    """

    url: str
    commit: str
    files: int
    deleted: Sequence[str] = field(default=())
    kept: Sequence[str] = field(default=())


class _Repository:
    """The repository of one push, looked at anew in each try."""

    def __init__(self, repo: str, public: bool, endpoint: str | None) -> None:
        self.repo, self.public = repo, public
        self.api = HfApi(endpoint=endpoint)
        self.created = False
        """Whether this push made it, and nobody else has written to it."""

    def head(self) -> str | None:
        """Return its newest commit; None where there is no such repository.

        Raises:
            RepositoryError: It is public and that was not allowed.
        """
        try:
            found = self.api.repo_info(self.repo)
        except HfHubHTTPError as error:
            if error.response.status_code == 404:
                return None
            raise
        if not self.public and not found.private:
            raise RepositoryError(
                f"{self.repo} exists and is public; say --public to upload to it, or choose "
                "another --repo"
            )
        return found.sha

    def create(self) -> str | None:
        """Create it and return its first commit."""
        self.api.create_repo(self.repo, private=not self.public, exist_ok=False)
        self.created = True
        return self.head()

    def files(self) -> list[str]:
        """Return the names of its files."""
        return [e.path for e in self.api.list_repo_tree(self.repo, recursive=True) if _is_file(e)]

    def card(self, names: Sequence[str]) -> str | None:
        """Return its ``README.md``; None without one."""
        if CARD not in names:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = self.api.hf_hub_download(self.repo, CARD, local_dir=folder)
            return Path(file).read_bytes().decode("utf-8", errors="replace")

    def forget(self) -> None:
        """Remove it again where this push made it and it is still empty."""
        if self.created and not set(self.files()) - {".gitattributes"}:
            self.api.delete_repo(self.repo)


def check_push(
    repo: str,
    *,
    public: bool = False,
    endpoint: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Refuse what can be refused before the hours of a verification: name, rights, visibility.

    Args:
        repo: As in ``push``.
        public: As in ``push``.
        endpoint: As in ``push``.
        wait: As in ``push``.

    Raises:
        RepositoryError: No such name is possible, or it is public.
        HubError: Not logged in, not allowed, or the Hub did not answer.
    """
    check_name(repo)
    repository = _Repository(repo, public, endpoint)

    def attempt() -> None:
        check_rights(repository.api, repo)
        repository.head()

    patiently(attempt, repo, wait)


def push(
    files: Mapping[str, Path | bytes],
    repo: str,
    *,
    public: bool = False,
    message: str,
    replace: bool = False,
    replace_card: bool = False,
    endpoint: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Make the model repository ``repo`` hold ``files``, in one commit.

    Args:
        files: Local file or content by path in the repository.
        repo: ``owner/name``; created when it does not exist.
        public: Create it public, or allow that it is.
        message: The commit's message.
        replace: Delete what others put there and would change what loads, and overwrite what they
            put under a name that is written.
        replace_card: Replace a card that was written by hand instead of adding to it.
        endpoint: Another hub than the usual one.
        wait: Called with seconds before a retry.

    Raises:
        CheckpointError: A file holds something that looks like a token; a card cannot be read.
        RepositoryError: The name is none, the repository is public and ``public`` was not given, or
            it holds what others put there.
        HubError: Not logged in, not allowed, or the Hub did not answer in five tries.
    """
    check_name(repo)
    refuse_tokens(files)
    repository = _Repository(repo, public, endpoint)

    def attempt() -> Pushed:
        head = repository.head() or repository.create()
        names = repository.files()
        card = repository.card(names)
        pushed_before = card is not None and is_of_a_push(card)
        changes = changes_to(names, files, repo, pushed_before=pushed_before, replace=replace)
        ours = dict(files)
        if card is not None and CARD in ours and not replace_card:
            ours[CARD] = _card_for(card, _text(ours[CARD]), f"{repo}/{CARD}").encode()
        commit = repository.api.create_commit(
            repo, _operations(ours, changes), commit_message=message, parent_commit=head
        )
        url = without_credentials(f"{repository.api.endpoint}/{repo}")
        return Pushed(url, commit.oid, len(ours), changes.deleted, changes.kept)

    return patiently(attempt, repo, wait, refused=repository.forget)


def _card_for(theirs: str, ours: str, where: str) -> str:
    """Return the repository's card with our section, or a local one that people wrote.

    Raises:
        RepositoryError: People wrote both, differently; or theirs is no page of text.
    """
    if len(theirs) > _LARGEST_CARD:
        raise RepositoryError(
            f"{where}: has {len(theirs)} characters; give it up with --replace-card"
        )
    local = parse_card(ours, CARD)
    if not local.by_hand:
        return updated_card(theirs, ours, where)
    there = parse_card(theirs, where)
    if there.by_hand and (there.before, there.after) != (local.before, local.after):
        raise RepositoryError(
            f"{where} and the {CARD} of the merged folder were both written by hand and differ; "
            "take the folder's with --replace-card, or remove it from the folder"
        )
    return ours


def _operations(
    files: Mapping[str, Path | bytes], changes: Changes
) -> list[CommitOperationAdd | CommitOperationDelete]:
    added = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
    return [*added, *(CommitOperationDelete(name) for name in changes.deleted)]


def refuse_tokens(files: Mapping[str, Path | bytes]) -> None:
    """Refuse to upload a text file that holds something that looks like a token.

    Raises:
        CheckpointError: Names the file, not the token.
    """
    for name, content in files.items():
        if is_text(name) and CREDENTIAL.search(_text(content)):
            raise CheckpointError(
                f"{name}: holds something that looks like an access token; nothing was uploaded. "
                "Remove it there, and revoke the token"
            )


def refuse_places(files: Mapping[str, Path | bytes], places: Sequence[Path]) -> None:
    """Refuse to upload a text file that names a folder of this machine.

    Args:
        files: As in ``push``.
        places: Absolute folders that are nobody's business.

    Raises:
        CheckpointError: Names the file and the folder.
    """
    private = [str(place) for place in places if len(place.parts) > 2]
    for name, content in files.items():
        text = _text(content) if is_text(name) else ""
        for place in private:
            if re.search(re.escape(place) + r"(?![\w.-])", text):
                raise CheckpointError(
                    f"{name}: names the folder {place} of this machine; nothing was uploaded. "
                    "Replace it there by a name that is public, or remove the entry"
                )


def is_text(name: str) -> bool:
    """Return whether a file of this name is read by people."""
    return Path(name).suffix in _TEXT_FILES


def _text(content: Path | bytes) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    return data.decode("utf-8", errors="replace")


def _is_file(entry: object) -> bool:
    return hasattr(entry, "blob_id")
