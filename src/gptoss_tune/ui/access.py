"""Who may ask: the browser that was given the token, on this machine, from this page itself.

A server on loopback is reached by every page that the same browser shows, and by every user of the
machine. So a request needs

- a host that is this machine: a name of another one that resolves to it is refused, whatever the
  port is, which a tunnel may change;
- the token of this start, in the address at first and then in a cookie that other sites' requests
  do not carry (``SameSite=Strict``) and scripts do not read (``HttpOnly``);
- to change anything, a second token from the page, and an origin that is this page's.

The address that the browser is started with stands in the list of processes, which other users
read: it holds a ticket that is good for one request.
"""

from __future__ import annotations

import secrets
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
ACTION_HEADER: Final = "x-gptoss-tune-action"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_ASK_AGAIN: Final = (
    "this page needs the token of the address that `gptoss-tune ui` printed when it started; open "
    "that address again\n"
)


class Access:
    """The tokens of one start.

    Attributes:
        token: In the address that is printed.
        action_token: In the pages, for what changes something.
        cookie: Name of the cookie; cookies do not know ports, so it names the server's.
    """

    def __init__(self, port: int) -> None:
        """Draw the tokens."""
        self.token = secrets.token_urlsafe(32)
        self.action_token = secrets.token_urlsafe(32)
        self.cookie = f"gptoss-tune-ui-{port}"
        self._tickets: set[str] = set()

    def ticket(self) -> str:
        """Return a token that is good once."""
        ticket = secrets.token_urlsafe(32)
        self._tickets.add(ticket)
        return ticket

    def lets_in(self, shown: str) -> bool:
        """Return whether an address with this token lets its browser in."""
        if shown in self._tickets:
            self._tickets.remove(shown)
            return True
        return _equal(shown, self.token)

    def knows(self, request: Request) -> bool:
        """Return whether a request carries the cookie."""
        return _equal(request.cookies.get(self.cookie, ""), self.token)


class Guarded:
    """An application behind ``Access``; every answer gets the headers of a careful page."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Guard ``app``."""
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            return  # neither web sockets nor the life of the server are answered
        answer = self._refused(Request(scope))
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refused(self, request: Request) -> Response | None:
        """Return what a request gets that is not let through."""
        host = request.headers.get("host", "")
        if _name_of(host) not in LOOPBACK:
            return PlainTextResponse("this page is for this machine alone\n", 403)
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return PlainTextResponse("another page may not ask here\n", 403)
        if request.method in ("GET", "HEAD"):
            shown = request.query_params.get("token")
            if shown is not None and self._access.lets_in(shown):
                return self._let_in(request.url.path)
            known = self._access.knows(request)
            return None if known else PlainTextResponse(_ASK_AGAIN, 403)
        said = request.headers.get(ACTION_HEADER, "")
        if origin is None or not self._access.knows(request):
            return PlainTextResponse(_ASK_AGAIN, 403)
        if not _equal(said, self._access.action_token):
            return PlainTextResponse("this page is older than the server; load it again\n", 403)
        return None

    def _let_in(self, path: str) -> Response:
        """Give the cookie, and go on without the token in the address.

        By a page and not by a redirect: a link in another site's terminal begins a chain of
        redirects in which a strict cookie is left out.
        """
        there = path if path.startswith("/") and not path.startswith("//") else "/"
        if not all(letter.isalnum() or letter in "/_-." for letter in there):
            there = "/"
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="refresh" content="0; url={there}"><link rel="icon" href="data:,">'
            "<title>gptoss-tune</title></head>"
            f'<body><p><a href="{there}">Go on</a></p></body></html>'
        )
        answer = HTMLResponse(page)
        answer.set_cookie(
            self._access.cookie, self._access.token, httponly=True, samesite="strict", path="/"
        )
        return answer


def _name_of(host: str) -> str:
    """Return the host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _equal(shown: str, token: str) -> bool:
    return secrets.compare_digest(shown.encode("utf-8", "replace"), token.encode())
