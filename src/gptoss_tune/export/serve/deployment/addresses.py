"""Addresses that a server listens on, and how they are asked and published."""

from __future__ import annotations

import ipaddress

LOCALHOST = "localhost"
LOOPBACK = "127.0.0.1"


def is_address(host: str) -> bool:
    """Return whether a server can listen on ``host`` and compose can publish a port there.

    Compose takes numbers alone, so of the names only this machine's own is one.
    """
    return host == LOCALHOST or _parsed(host) is not None


def is_loopback(host: str) -> bool:
    """Return whether this machine alone reaches ``host``."""
    parsed = _parsed(host)
    return host == LOCALHOST or (parsed is not None and parsed.is_loopback)


def url_of(host: str, port: int) -> str:
    """Return where a server that listens on ``host`` is asked from this machine."""
    parsed = _parsed(host)
    if parsed is None or parsed.is_unspecified or host == LOOPBACK:
        return f"http://{LOCALHOST}:{port}"
    return f"http://{f'[{host}]' if parsed.version == 6 else host}:{port}"


def published(host: str, port: int) -> str:
    """Return the port of a container as compose publishes it on ``host``."""
    host = LOOPBACK if host == LOCALHOST else host
    return f"{f'[{host}]' if ':' in host else host}:{port}:{port}"


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in host else ipaddress.ip_address(host)  # a zone is of one machine
    except ValueError:
        return None
