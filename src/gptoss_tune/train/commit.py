"""Which commit of a checkout a run came from, asked without running what the checkout names.

The current directory may be someone else's: an unpacked archive with a ``.git`` in it. Its
configuration can name a program for git to run while it compares files (``core.fsmonitor``, a
``filter``, a hook), so ``git describe --dirty``, the usual question, would run that program. The
commit is asked with a command that compares nothing; whether files changed is asked only where the
checkout itself configures no program.
"""

from __future__ import annotations

import subprocess

_QUIET = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
_TIMEOUT_S = 10
_CHANGED, _NOT_ASKED = "-dirty", "-unchecked"
# The scopes that the user owns; "command" is ours, from the line above.
_OWN_SCOPES = ("system", "global", "command")


def git_commit() -> str | None:
    """Return the commit of the current directory's checkout; None where there is none.

    Returns:
        The hash, with ``-dirty`` when tracked files differ, with ``-unchecked`` when the checkout's
        configuration names programs and that was not asked.
    """
    commit = _git("rev-parse", "--verify", "HEAD")
    if not commit:
        return None  # not a checkout, or no git: nothing to record
    if _names_programs():
        return commit + _NOT_ASKED
    changed = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return commit if changed == "" else commit + _CHANGED


def _names_programs() -> bool:
    """Return whether the checkout's own configuration names a filter, or cannot be listed."""
    listed = _git("config", "--list", "--show-scope", "--includes", "--null")
    if listed is None:
        return True
    # scope NUL key LF value NUL, again and again
    scopes_and_keys = listed.split("\0")
    return any(
        scope not in _OWN_SCOPES and entry.lower().startswith("filter.")
        for scope, entry in zip(scopes_and_keys[::2], scopes_and_keys[1::2], strict=False)
    )


def _git(*arguments: str) -> str | None:
    """Return what git prints; None where it fails or is not there."""
    try:
        found = subprocess.run(
            ["git", *_QUIET, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
