"""Where a server listens and who may ask it; checked before anything is loaded."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_tune.errors import MachineError

_ORIGIN = re.compile(r"https?://[^/\s]+|\*")


@dataclass(frozen=True)
class ServerSettings:
    """Where a server listens, and who may ask it.

    Attributes:
        host: An address of this machine; one that others reach needs a key.
        port: 0 takes a free one.
        api_key: What a client has to send; ``None``: nothing.
        origins: Web pages of other origins that may ask, ``*`` for any.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    origins: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls, host: str, port: int, api_key: str | None, origins: Sequence[str]
    ) -> ServerSettings:
        """Return settings that can be served.

        Raises:
            ValueError: The host is open to others without a key, or an origin is none.
            MachineError: Starlette or uvicorn is not installed.
        """
        missing = [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]
        if missing:
            raise MachineError(
                f"--serve needs {' and '.join(missing)}, not installed here; "
                "pip install 'gptoss-tune[ui]'"
            )
        api_key = api_key or None
        if api_key is None and not is_loopback(host):
            raise ValueError(
                f"--host {host} is open to others than this machine; expected an API key with it "
                "(--api-key, or GPTOSS_TUNE_API_KEY in the environment), or leave --host out"
            )
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"--allow-origin {origin!r}; expected scheme, host and port without a path, "
                    "such as http://localhost:3000"
                )
        return cls(host, port, api_key, tuple(origins))

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def bind(self) -> socket.socket:
        """Return a socket on the address, which does not listen yet.

        Raises:
            MachineError: The port is taken, or the address is not this machine's.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self.host, self.port))
        except OSError as error:
            bound.close()
            raise MachineError(
                f"cannot listen on {self.host} port {self.port} ({error.strerror or error}); "
                "choose another --port, or 0 for a free one"
            ) from None
        return bound


def is_loopback(host: str) -> bool:
    """Return whether an address or name means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
