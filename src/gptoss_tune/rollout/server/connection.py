"""One question to a server, whose answer may be long in coming and may be cut off from outside.

A sampled answer takes seconds to minutes, and a signal or a neighbour's error must not wait for it:
closing the connection is also what tells vLLM to stop generating. ``urllib`` gives no hold on a
connection before its answer begins, so this is ``http.client``; proxies of the environment are not
asked, since a sampler's server stands beside the training.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gptoss_tune.export.openai_server import LARGEST_ANSWER

LONGEST_ANSWER = 64 * LARGEST_ANSWER
"""Bytes of one answer at most: ids, log-probabilities and experts of 128k tokens fit, and the
checksums of every tensor on every worker."""


class CutOff(Exception):
    """The connection was closed from outside, or because its time was over."""


class Exchange:
    """A question and its answer.

    Attributes:
        deadline: Of the whole answer, by ``time.monotonic``.
    """

    def __init__(self, address: str, key: str | None, seconds: float) -> None:
        """Ask at ``address`` with a bearer token, and wait for so many seconds in all."""
        parts = urlsplit(address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else None
        self._connection = (kind or http.client.HTTPConnection)(
            parts.hostname or "", parts.port, timeout=seconds
        )
        self._path, self._seconds, self._key = parts.path, seconds, key
        self._lock, self._cut = threading.Lock(), False
        self.deadline = time.monotonic() + seconds

    def ask(self, wanted: Mapping[str, Any]) -> tuple[int, bytes]:
        """Return the status and what was answered; a redirection is not followed.

        Raises:
            CutOff: ``cut`` was called.
            ValueError: The answer is larger than ``LONGEST_ANSWER``.
            OSError, http.client.HTTPException: There is no answer.
        """
        headers = {"content-type": "application/json", "connection": "close"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            self._connection.connect()
            if self._cut:
                raise CutOff
            self._connection.request("POST", self._path, json.dumps(dict(wanted)).encode(), headers)
            response = self._connection.getresponse()
            raw = response.read(LONGEST_ANSWER + 1)
        except (OSError, http.client.HTTPException):
            if self._cut:
                raise CutOff from None
            raise
        finally:
            self._connection.close()
        if self._cut:
            raise CutOff
        if len(raw) > LONGEST_ANSWER:
            raise ValueError(f"more than {LONGEST_ANSWER} bytes")
        return response.status, raw

    def cut(self) -> None:
        """End the exchange, in whatever state it is; its ``ask`` raises ``CutOff``."""
        with self._lock:
            self._cut = True
            held = self._connection.sock
            if held is not None:
                with contextlib.suppress(OSError):
                    held.shutdown(socket.SHUT_RDWR)


class Exchanges:
    """Those under way, for who has to end them: by their deadlines, or all at once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock, self._open = threading.Lock(), set[Exchange]()
        self._over = threading.Event()

    @property
    def over(self) -> bool:
        """Whether all were ended."""
        return self._over.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, or until all are ended."""
        self._over.wait(seconds)

    @contextlib.contextmanager
    def holding(self, exchange: Exchange) -> Any:
        """Hold an exchange while it is under way.

        Raises:
            CutOff: All were ended.
        """
        with self._lock:
            if self.over:
                raise CutOff
            self._open.add(exchange)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(exchange)

    def end_late(self) -> None:
        """End those whose time is over."""
        now = time.monotonic()
        with self._lock:
            late = [one for one in self._open if one.deadline < now]
        for one in late:
            one.cut()

    def end(self) -> None:
        """End all, and whatever would begin."""
        with self._lock:
            self._over.set()
            held = list(self._open)
        for one in held:
            one.cut()
