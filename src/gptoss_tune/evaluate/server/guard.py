"""Who may ask a server: this machine's own clients, pages that were allowed, holders of the key.

A web page of anyone can make the visitor's browser send requests to 127.0.0.1, directly or under a
name of its own that it lets point there (DNS rebinding). So a server on loopback answers to its own
names alone, and a page of another origin has to be allowed by name; the browser says both in
headers that no script can write.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from gptoss_tune.evaluate.server.requests import BadRequest
from gptoss_tune.evaluate.server.settings import ServerSettings, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/health",)
"""Paths that need no key."""


class Guard:
    """Refuses requests before any of their body is read."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        """Let ``app`` answer what ``settings`` allow."""
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            answer = JSONResponse(refusal.body(), refusal.status)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> BadRequest | None:
        headers, settings = Headers(scope=scope), self._settings
        host, origin = headers.get("host", ""), headers.get("origin")
        if settings.local and not is_loopback(_name(host)):
            return BadRequest(
                f"the host {host[:80]!r} is not this server's name; expected {settings.host}",
                None,
                "host_not_allowed",
                403,
            )
        allowed = {*settings.origins, f"http://{host}"}
        if origin is not None and origin not in allowed and "*" not in allowed:
            return BadRequest(
                f"pages of {origin[:80]!r} may not ask this server; start it with --allow-origin "
                "and that origin if they should",
                None,
                "origin_not_allowed",
                403,
            )
        if settings.api_key is not None and scope["path"] not in OPEN:
            sent = headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(sent.encode(), settings.api_key.encode()):
                return BadRequest(
                    "no API key, or another one; expected the header Authorization: Bearer KEY "
                    "with the key that the server was started with",
                    None,
                    "invalid_api_key",
                    401,
                )
        return None


def _name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host
