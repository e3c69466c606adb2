"""The process that holds a model: questions in by lines of JSON, answers out as they come.

``python -m gptoss_tune.ui.chat.worker MODEL``. It reads from standard input

- ``{"begin": {"effort": ..., ...}}``: forget what was said, answer by these settings;
- ``{"ask": "..."}``: a question;
- ``{"stop": true}``: end the answer that is being given;

and writes ``{"event": ...}`` lines. Its end frees the memory of the model, whatever libraries keep
of it; a thread of the server could not, and would hold its pages up while it loads.
"""

from __future__ import annotations

import _thread
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from gptoss_tune.display import shown_safely
from gptoss_tune.error_hints import cause_of
from gptoss_tune.errors import GptossTuneError

if TYPE_CHECKING:
    from gptoss_tune.evaluate.chat import ChatModel

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Load the model that the command line names, and answer until the input ends."""
    say = _sayer()
    inbox = _Inbox(sys.stdin)
    try:
        model = _loaded(sys.argv[1])
    except (GptossTuneError, RuntimeError, OSError, ImportError) as error:
        known = isinstance(error, GptossTuneError)
        cause = str(error) if known else cause_of(error)
        if cause is None:
            raise  # its traceback is what a report needs; it stands in the log
        say({"event": "failed", "message": shown_safely(cause)})
        raise SystemExit(3) from None
    say({"event": "ready", "effort": model.settings.effort})
    inbox.start()
    for message in iter(inbox.next, None):
        if isinstance(message.get("begin"), dict):
            _begin(model, message["begin"], say)
        elif isinstance(message.get("ask"), str):
            _answer(model, message["ask"], inbox, say)


def _sayer() -> Say:
    """Keep standard output for events; what libraries print goes to the log."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    return say


def _loaded(name: str) -> ChatModel:
    """Load a merged model, or the adapter of a run and its base."""
    from transformers.utils import logging

    from gptoss_tune.evaluate.chat import ChatModel, ChatSettings
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.weights.adapter import base_name, is_adapter, open_adapter

    logging.disable_progress_bar()
    if not is_adapter(name):
        return ChatModel(open_checkpoint(name), ChatSettings())
    base, revision = base_name([name])
    checkpoint = open_checkpoint(base, revision)
    return ChatModel(checkpoint, ChatSettings(), open_adapter(name, checkpoint))


def _begin(model: ChatModel, wanted: dict[str, Any], say: Say) -> None:
    from gptoss_tune.evaluate.chat import ChatSettings

    model.begin(ChatSettings(**wanted))
    say({"event": "begun", "settings": wanted})


def _answer(model: ChatModel, question: str, inbox: _Inbox, say: Say) -> None:
    """Answer one question; a stop ends the answer alone."""
    say({"event": "asked", "text": question})

    def show(channel: str, text: str) -> None:
        say({"event": "said", "channel": channel, "text": text})

    try:
        with inbox.stoppable():
            ended = model.ask(question, show).ended
    except KeyboardInterrupt:
        ended = "interrupt"  # it came when the answer had just ended
    except (RuntimeError, GptossTuneError) as error:
        ended = "error"
        message = shown_safely(cause_of(error) or str(error))
        say({"event": "trouble", "message": message})
    say({"event": "answered", "ended": ended})


class _Inbox:
    """Lines of the input, read on a thread of their own, so that a stop is heard in an answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._answering = False

    def start(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any] | None:
        """Return the next message; ``None`` when there will be no more."""
        return self._messages.get()

    def stoppable(self) -> _Stoppable:
        return _Stoppable(self)

    def answering(self, value: bool) -> None:
        with self._lock:
            self._answering = value

    def _read(self) -> None:
        for line in self._stream:
            message = json.loads(line)
            if message.get("stop"):
                self._interrupt()
            else:
                self._messages.put(message)
        self._messages.put(None)
        self._interrupt()

    def _interrupt(self) -> None:
        with self._lock:
            if self._answering:
                _thread.interrupt_main()


class _Stoppable:
    """While it is entered, a stop raises KeyboardInterrupt in the main thread."""

    def __init__(self, inbox: _Inbox) -> None:
        self._inbox = inbox

    def __enter__(self) -> None:
        self._inbox.answering(True)

    def __exit__(self, *exception: object) -> None:
        self._inbox.answering(False)


if __name__ == "__main__":
    main()
