"""The server: one port of loopback, one address with its token, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import webbrowser
from pathlib import Path
from typing import Final

import uvicorn

from gptoss_tune.display import one_line
from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.ui.access import Access
from gptoss_tune.ui.server.app import Services, application

DEFAULT_PORT: Final = 8765


def serve(folder: Path, *, port: int | None, browser: bool) -> None:
    """Show the page of ``folder`` until Ctrl-C.

    Args:
        folder: Below which the runs lie.
        port: Of loopback; ``None``: 8765, or another one that is free.
        browser: Open it in the user's browser, where there is one.

    Raises:
        RecipeError: ``folder`` is none.
        MachineError: The port is taken.
    """
    if not folder.is_dir():
        raise RecipeError(
            f"{folder}: no such folder; give the one below which your runs lie, such as runs"
        )
    listening = _listening(port)
    number = listening.getsockname()[1]
    access = Access(number)
    services = Services(folder, access)
    address = f"http://127.0.0.1:{number}/"
    sys.stdout.write(
        f"{address}?token={access.token}\n"
        f"the runs below {one_line(str(folder))}, for this machine alone; Ctrl-C ends it\n"
    )
    sys.stdout.flush()
    if browser and _has_browser():
        # The socket listens already: what the browser asks waits for the server.
        webbrowser.open(f"{address}?token={access.ticket()}")
    config = uvicorn.Config(
        application(services),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        for job in services.close():
            sys.stdout.write(
                f"`{job.command}` goes on as process {job.process.pid}; it writes to {job.log}\n"
            )


def _listening(port: int | None) -> socket.socket:
    """Return a socket that listens on loopback.

    Raises:
        MachineError: The port that was asked for is taken, or not allowed.
    """
    for number in (DEFAULT_PORT, 0) if port is None else (port,):
        listening = socket.socket()
        if os.name == "posix":  # elsewhere it would share a port that is taken
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", number))
        except OSError as error:
            listening.close()
            if port is not None:
                raise MachineError(
                    f"port {port} of 127.0.0.1 cannot be used ({error.strerror}); choose another "
                    "by --port, or leave it out for one that is free"
                ) from None
            continue
        listening.listen(128)
        return listening
    raise MachineError("no port of 127.0.0.1 is free; end a server that you do not need")


def _has_browser() -> bool:
    """Return whether a window can be opened here: a browser of the terminal would take it over."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
