"""What runs in the process that judges: reads jobs as lines of JSON, answers each with one.

Before the first job it limits itself, with limits that the system keeps: memory, no files that
grow, no core dumps, few open files. Each job sets an alarm that ends the process even where nobody
is left to kill it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

MEMORY: Final = 2 << 30
"""Bytes of address space."""
GRACE: Final = 5
"""Seconds after a job's time at which the process ends itself."""

Judge = Callable[[dict[str, Any]], dict[str, Any]]


def limit() -> None:
    """Limit what this process can take from the machine; without effect on Windows."""
    if sys.platform == "win32":
        return
    import resource

    for name, most in (
        ("RLIMIT_AS", MEMORY),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", 64),
    ):
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        # macOS refuses a limit of the address space; its job is ended by time there.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def serve(judge: Judge) -> None:
    """Answer jobs until the input ends."""
    jobs = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    # What a library prints must not be taken for a reply.
    with open(os.devnull, "r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    replies.write(b"{}\n")
    replies.flush()
    for line in jobs:
        job = json.loads(line)
        if sys.platform != "win32":
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(job["seconds"]) + GRACE)
        try:
            reply = judge(job["task"])
        except (RecursionError, MemoryError) as error:
            reply = {"error": type(error).__name__}
        if sys.platform != "win32":
            signal.alarm(0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def main() -> None:
    """Import what the job needs, take the limits on, and serve."""
    if sys.argv[1] == "maths":
        from gptoss_tune.grading.bounded.maths_job import judge, warm_up

        warm_up()
    else:
        from gptoss_tune.grading.bounded.schema_job import judge
    limit()
    serve(judge)


if __name__ == "__main__":
    main()
