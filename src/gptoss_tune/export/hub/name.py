"""The name of a repository and the login, which are looked at before anything is read or sent.

Apart from ``repository``, because a command asks both before it imports what a push needs.
"""

from __future__ import annotations

import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_token, validate_repo_id

from gptoss_tune.display import one_line
from gptoss_tune.errors import HubError, RepositoryError


def check_name(repo: str) -> None:
    """Refuse what can be no name of a model repository, before anything is read or sent.

    Raises:
        RepositoryError: With the name that is probably meant.
    """
    shown = one_line(repo)
    if match := re.fullmatch(r"https?://[^/]+/(?:models/)?([^/\s]+/[^/\s?#]+)[/?#]?.*", repo):
        raise RepositoryError(f"--repo is '{shown}', an address; write --repo {match[1]}")
    if repo.count("/") != 1 or "" in repo.split("/"):
        raise RepositoryError(
            f"--repo is '{shown}'; expected owner/name with one slash, for example acme/support-bot"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise RepositoryError(
            f"--repo is '{shown}'; expected letters, digits, '-', '_' and '.' in owner and name, "
            "no '--' or '..', neither '-' nor '.' first or last, at most 96 characters, not '.git' "
            "at the end"
        ) from None


def check_login(repo: str) -> None:
    """Refuse a push without a token.

    Raises:
        HubError: Nobody is logged in here.
    """
    if get_token() is None:
        raise HubError(f"cannot push to {repo}: not logged in; run `hf auth login`")
