"""The errors a user can meet: one tree, each with the exit code its cause deserves.

A message says what was got, what was expected and what to do, and names file and line where there
is one: ``data/train.jsonl:17: last message has role 'user'; training needs an assistant reply at
the end``. The commands print the message alone; ``--debug`` adds the traceback.

Exit codes: 0 done, 2 the user's input, 3 the environment, 4 what was asked could not be decided, 5
a threshold of the user's was missed, 75 stopped and resumable (the number that ``sysexits.h`` calls
EX_TEMPFAIL, which batch schedulers requeue on).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from gptoss_tune.display import shown_safely, spell_out, wrapped
from gptoss_tune.telemetry import switch_off_telemetry


class GptossTuneError(Exception):
    """Base of every error that gptoss-tune raises on purpose."""

    exit_code = 2


class RecipeError(GptossTuneError, ValueError):
    """A recipe cannot be run as written; the message lists every mistake in it."""


class DataError(GptossTuneError, ValueError):
    """A data file or row cannot be trained on; the message names file and line."""


class CheckpointError(GptossTuneError, RuntimeError):
    """A base, adapter or training checkpoint is missing, damaged, or not what was asked for."""


class HubError(GptossTuneError, RuntimeError):
    """The Hugging Face Hub did not give or take what was asked."""

    exit_code = 3


class RepositoryError(HubError):
    """A repository, or its name, is not one that this can be pushed to; another must be named."""

    exit_code = 2


class UndecidedError(GptossTuneError, RuntimeError):
    """What was asked could be shown neither true nor false; nothing is known to be wrong."""

    exit_code = 4


class ThresholdMissed(GptossTuneError):
    """What was measured is worse than the user wants it to be; everything else went well."""

    exit_code = 5


class MachineError(GptossTuneError, RuntimeError):
    """This machine lacks what the run needs: disk space, a GPU, a library, a free port."""

    exit_code = 3


class GuardError(GptossTuneError, RuntimeError):
    """A run was stopped because it trained nothing, moved what is frozen, or computed NaN."""


class RunInterrupted(GptossTuneError):
    """The run stopped before its end; the same command continues from its newest checkpoint."""

    exit_code = 75


class RankLost(RunInterrupted):
    """Another process of the run was killed, froze or left, so that this one cannot go on."""

    def __init__(self, message: str, *, exit_code: int = 75) -> None:
        """Leave with ``exit_code``: that of the rank that left first."""
        super().__init__(message)
        self.exit_code = exit_code


def run_command(command: Callable[[], object], *, debug: bool) -> None:
    """Run ``command``, without telemetry; turn our own errors into one message and an exit code.

    Every Python that the command starts (a launcher, a rendering process, a library's helper) looks
    for modules in its libraries and not in the current folder, which may be a stranger's.

    Args:
        command: Does the work; its return value is ignored.
        debug: Print the traceback before the message.

    Raises:
        SystemExit: With the error's exit code, or 130 after Ctrl-C.
    """
    switch_off_telemetry()
    os.environ["PYTHONSAFEPATH"] = "1"
    spell_out(sys.stdout, sys.stderr)
    try:
        command()
    except GptossTuneError as error:
        if debug:
            _print_traceback()
        label = "stopped" if isinstance(error, RunInterrupted) else "error"
        say_once(f"{label}: {error}", aside=isinstance(error, RankLost))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        say_once("stopped by Ctrl-C; nothing half-written was left behind")
        raise SystemExit(130) from None
    except (RuntimeError, OSError, AssertionError, ImportError) as error:
        from gptoss_tune.error_hints import cause_of  # its table is read for such errors alone

        cause = cause_of(error)
        if cause is None:
            raise  # it may be a fault of ours, and its traceback is what a report needs
        if debug:
            _print_traceback()
        say_once(f"error: {cause}")
        raise SystemExit(MachineError.exit_code) from None


def _print_traceback() -> None:
    import traceback

    sys.stderr.write(shown_safely(traceback.format_exc()))


def say_once(message: str, *, aside: bool = False) -> None:
    """Write ``message`` to stderr, once for all processes of a machine that would say the same.

    torchrun, and accelerate through it, gives each process a folder below one of the launch; the
    first process leaves the message's hash there. A message of one rank alone is always written.

    Args:
        message: One line or several.
        aside: It tells of another process, and is left out where any has said why the run ends.
    """
    text = shown_safely(message)
    folder = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if folder:
        import hashlib

        said = Path(folder).parent.parent
        if aside and any(said.glob("said-*")):
            return
        words = "aside" if aside else hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            (said / f"said-{words}").touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # the launcher's folder is gone: better twice than never
    if sys.stderr.isatty():
        import shutil

        text = wrapped(text, shutil.get_terminal_size().columns)
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
