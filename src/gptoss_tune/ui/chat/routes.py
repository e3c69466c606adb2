"""The page of the chat: models below the folder, one loaded at a time, answers as they come."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gptoss_tune.errors import RecipeError
from gptoss_tune.ui.chat.models import EFFORTS, model_named, models_below
from gptoss_tune.ui.chat.session import ChatSession
from gptoss_tune.ui.pages import Pages

_LONGEST_WAIT_S: Final = 20.0
_LOOK_S: Final = 0.05
_MOST_TOKENS: Final = 65_536
_MOST_AT_ONCE: Final = 2000


class ChatPage:
    """The page, and the one model that is loaded."""

    def __init__(self, folder: Path, pages: Pages, logs: Path) -> None:
        """Load nothing.

        Args:
            folder: Below which the models lie.
            pages: What draws the page.
            logs: Where the worker writes what is no event.
        """
        self._folder, self._pages, self._logs = folder, pages, logs
        self._lock = threading.Lock()
        self._session: ChatSession | None = None
        self._number = 0

    def page(self, request: Request) -> Response:
        """Return the page."""
        chosen = self._session.model if self._session else request.query_params.get("model", "")
        return self._pages.page(
            "chat.html", models=models_below(self._folder), chosen=chosen, efforts=EFFORTS
        )

    async def events(self, request: Request) -> Response:
        """Return what the model has said since; wait for it, but not for ever."""
        seen = _whole(request.query_params.get("from"))
        known = _whole(request.query_params.get("session"))
        until = time.monotonic() + _LONGEST_WAIT_S
        while time.monotonic() < until:
            session, number = self._session, self._number
            if number != known or (session and len(session.events) > seen):
                break
            if await request.is_disconnected():
                break
            await asyncio.sleep(_LOOK_S)
        session, number = self._session, self._number
        seen = seen if number == known else 0
        events = session.events[seen : seen + _MOST_AT_ONCE] if session else []
        return JSONResponse(
            {
                "session": number,
                "model": session.model if session else "",
                "state": session.state if session else "none",
                "events": events,
                "next": seen + len(events),
            }
        )

    def load(self, body: dict[str, Any]) -> Response:
        """Start to load a model; the one before goes."""
        model, folder = model_named(self._folder, str(body.get("model", "")))
        with self._lock:
            self._end()
            log = self._logs / "chat.log"
            self._session = ChatSession.start(model.name, folder, log)
            self._number += 1
        return JSONResponse({"model": model.name, "effort": model.effort})

    def unload(self, body: dict[str, Any]) -> Response:
        """End the process of the model, which frees its memory."""
        with self._lock:
            self._end()
            self._number += 1
        return JSONResponse({})

    def begin(self, body: dict[str, Any]) -> Response:
        """Begin a conversation by the settings of the page."""
        self._idle().send({"begin": _settings(body)})
        return JSONResponse({})

    def ask(self, body: dict[str, Any]) -> Response:
        """Put a question."""
        text = body.get("text")
        if not isinstance(text, str) or not text.strip():
            raise RecipeError("there is no question; write one")
        session = self._idle()
        session.state = "answering"
        session.send({"ask": text.strip()})
        return JSONResponse({})

    def stop(self, body: dict[str, Any]) -> Response:
        """End the answer that is being given."""
        if self._session is not None:
            self._session.send({"stop": True})
        return JSONResponse({})

    def close(self) -> None:
        """End the worker."""
        with self._lock:
            self._end()

    def _idle(self) -> ChatSession:
        """Return the session of a model that waits for a question.

        Raises:
            RecipeError: There is none, or it is busy.
        """
        session = self._session
        if session is None or session.state in ("none", "failed"):
            raise RecipeError("no model is loaded; choose one and load it")
        if session.state != "ready":
            raise RecipeError("the model is busy; stop its answer or wait for its end")
        return session

    def _end(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _settings(body: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a conversation.

    Raises:
        RecipeError: One of them is none.
    """
    effort, instructions = body.get("effort", "medium"), body.get("instructions") or None
    tokens, temperature = body.get("max_new_tokens", 512), body.get("temperature", 1.0)
    wrong = []
    if effort not in EFFORTS:
        wrong.append(f"effort: got {effort!r}, expected low, medium or high")
    if instructions is not None and not isinstance(instructions, str):
        wrong.append("instructions: expected text")
    if type(tokens) is not int or not 1 <= tokens <= _MOST_TOKENS:
        wrong.append(f"longest answer: got {tokens!r}, expected 1 to {_MOST_TOKENS} tokens")
    if type(temperature) not in (int, float) or not 0 <= temperature <= 10:
        wrong.append(f"temperature: got {temperature!r}, expected 0 to 10")
    if wrong:
        raise RecipeError("; ".join(wrong))
    return {
        "effort": effort,
        "instructions": instructions,
        "max_new_tokens": tokens,
        "temperature": float(temperature),
    }


def _whole(value: object) -> int:
    word = str(value)
    return int(word) if word.isascii() and word.isdigit() and len(word) < 16 else 0
