"""A repository before a push: its name, who may write to it, and what its files become.

A push makes a repository exactly what was verified. transformers and vLLM choose what to load by
the names that lie there: an ``adapter_config.json`` left beside whole weights is applied a second
time, a ``model.safetensors`` left beside shards is loaded in their place. So what an earlier push
left and this one does not write is deleted in the same commit; what others put there is kept where
no loader looks at it and this push does not write it, and refused otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from gptoss_tune.display import one_line
from gptoss_tune.errors import HubError, RepositoryError
from gptoss_tune.export.assets import COMPANIONS, NOTICE, TEMPLATE
from gptoss_tune.export.hub.name import check_login
from gptoss_tune.run.checkpoints import MANIFEST
from gptoss_tune.run.folder import RECIPE, RUN_CARD
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gptoss_tune.weights.names import INDEX_NAME, SINGLE_NAME

CARD, LOSS_PLOT = "README.md", "loss.svg"
_OURS = {
    *(CARD, RUN_CARD, LOSS_PLOT, RECIPE, NOTICE, "config.json", "merge_report.json"),
    *(ADAPTER_CONFIG, ADAPTER_WEIGHTS, SINGLE_NAME, INDEX_NAME, MANIFEST),
    *("LICENSE", "USAGE_POLICY"),
}
_OUR_PATTERNS = ("model-*-of-*.safetensors", *COMPANIONS)
"""Where a loader looks; other files of such names, LICENSE-of-data.txt, may be anyone's."""
TEMPLATES = "additional_chat_templates"
# Nothing that loads a model looks at these, whatever they hold.
_HARMLESS_KINDS = {
    *("", ".md", ".txt", ".rst", ".pdf", ".html", ".yaml", ".yml", ".csv", ".tsv", ".jsonl"),
    *(".parquet", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4", ".ipynb", ".log"),
    ".jinja",  # but for the one of this name:
}
_HARMLESS_NAMES = {
    *(RUN_CARD, "merge_report.json", "training_args.bin", "trainer_state.json"),
    *("all_results.json", "train_results.json", "eval_results.json", ".gitattributes"),
    ".gitignore",
}
_READ_NAMES = {"merges.txt", "vocab.txt", "tokenizer", TEMPLATE}
_READ_FOLDERS = {TEMPLATES, "chat_templates", "custom_generate"}
_NAMED = 5


@dataclass(frozen=True)
class Changes:
    """What a push does to the files of a repository that it does not write.

    Attributes:
        deleted: Files of earlier pushes, or ones to be replaced, that go in the same commit.
        kept: Files of others that stay: nothing that loads a model looks at them.
    """

    deleted: tuple[str, ...]
    kept: tuple[str, ...]


def check_rights(api: HfApi, repo: str) -> None:
    """Refuse a push that the token cannot make, as far as the Hub tells of a token.

    Raises:
        HubError: The token only reads, or is of someone who is not in the organisation.
    """
    check_login(repo)
    try:
        told = api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return  # a hub without this question; the push itself will tell
        raise
    owner = repo.partition("/")[0]
    name = str(told.get("name"))
    token = (told.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read" or _only_reads(token.get("fineGrained")):
        raise HubError(
            f"cannot push to {repo}: the token of '{one_line(name)}' only reads; make one that "
            "writes on the Hub's page of tokens and run `hf auth login`"
        )
    roles = {str(o.get("name")).lower(): o.get("roleInOrg") for o in told.get("orgs") or []}
    if roles.get(owner.lower()) == "read":
        raise HubError(
            f"cannot push to {repo}: '{one_line(name)}' only reads in the organisation '{owner}'; "
            "ask its administrator for the role of a contributor, or choose another --repo"
        )
    owners = {name.lower(), *roles}
    if owner.lower() not in owners:
        raise HubError(
            f"cannot push to {repo}: the token is of '{one_line(name)}', who is in no organisation "
            f"'{owner}'; expected one of {one_line(', '.join(sorted(owners)))} as owner in --repo"
        )


def _only_reads(fine_grained: Any) -> bool:
    """Return whether a fine-grained token lists permissions and none of them writes."""
    if not isinstance(fine_grained, dict):
        return False
    listed = [p for scope in fine_grained.get("scoped") or [] for p in scope.get("permissions", ())]
    listed += fine_grained.get("global") or []
    return bool(listed) and not any("write" in str(permission) for permission in listed)


def changes_to(
    existing: Iterable[str],
    written: Iterable[str],
    repo: str,
    *,
    pushed_before: bool,
    replace: bool,
) -> Changes:
    """Return what becomes of the files of a repository that a push does not write.

    The card is asked about by itself: what people wrote in it is kept.

    Args:
        existing: Its files.
        written: Those that the push writes.
        repo: Its name, for messages.
        pushed_before: Whether its card shows that it was pushed by this tool.
        replace: Delete what others put there and a loader would look at, and overwrite what they
            put under a name that is written.

    Raises:
        RepositoryError: Something is not ours and can change what loads, or would be overwritten.
    """
    written = set(written)
    deleted, kept, foreign = [], [], []
    for name in sorted(existing):
        if pushed_before and (name in written or _is_ours(name)):
            deleted += [name] if name not in written else []
        elif name in (CARD, ".gitattributes"):
            continue
        elif name in written or can_change_what_loads(name):
            foreign.append(name)
        else:
            kept.append(name)
    if foreign and not replace:
        raise RepositoryError(
            f"{repo}: holds {listed(foreign)}, which no push of gptoss-tune is known to have "
            "written, and which can change what loads or would be overwritten; nothing was "
            "uploaded. Choose another --repo, delete them on the Hub, or replace them with "
            "--replace"
        )
    deleted += [name for name in foreign if name not in written]
    return Changes(tuple(sorted(deleted)), tuple(kept))


def _is_ours(name: str) -> bool:
    """Return whether a file of this name in a repository of ours is one that a push wrote."""
    folder, _, last = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and last.endswith(".jinja")
    if name in _OURS:
        return True
    alike = any(fnmatchcase(name, pattern) for pattern in _OUR_PATTERNS)
    return alike and can_change_what_loads(name)


def can_change_what_loads(name: str) -> bool:
    """Return whether something that loads a model looks at a file of this name in a repository."""
    path = PurePosixPath(name)
    if len(path.parts) > 1:
        return path.parts[0] in _READ_FOLDERS
    if path.name in _READ_NAMES or path.name.startswith("tokenizer."):
        return True
    return path.name not in _HARMLESS_NAMES and path.suffix.lower() not in _HARMLESS_KINDS


def listed(names: Iterable[str]) -> str:
    """Return the first names of files, and how many more there are."""
    names = [one_line(name) for name in names]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
