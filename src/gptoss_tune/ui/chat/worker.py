"""The process that holds a model: questions in by lines of JSON, answers out as they come.

``python -m gptoss_tune.ui.chat.worker MODEL``. It reads from standard input

- ``{"begin": {"effort": ..., ...}}``: forget what was said, answer by these settings;
- ``{"ask": "..."}``: a question;
- ``{"stop": true}``: end the answer that is being given;

and writes ``{"event": ...}`` lines. Its end frees the memory of the model, whatever libraries keep
of it; a thread of the server could not, and would hold its pages up while it loads.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from gptoss_tune.display import shown_safely, visible
from gptoss_tune.error_hints import cause_of
from gptoss_tune.errors import GptossTuneError

if TYPE_CHECKING:
    from gptoss_tune.chat.talk import Talk
    from gptoss_tune.evaluate.channels import Delta
    from gptoss_tune.evaluate.conversation import Answerer

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
    say({"event": "ready", "effort": model.trained_as.effort})
    inbox.start()
    talk: Talk | None = None
    while True:
        message = inbox.next()
        if isinstance(message.get("begin"), dict):
            talk = _begun(model, message["begin"])
        elif isinstance(message.get("ask"), str) and talk is not None:
            _answer(talk, message["ask"], inbox, say)


def _sayer() -> Say:
    """Keep standard output for events; what libraries print goes to the log."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    return say


def _loaded(name: str) -> Answerer:
    """Load a merged model, or the adapter of a run and its base, as the run held them."""
    from gptoss_tune.train.entrypoint import quiet_libraries

    quiet_libraries()
    from gptoss_tune.evaluate.conversation import open_answerer
    from gptoss_tune.evaluate.load import open_evaluated_model
    from gptoss_tune.evaluate.trained_as import answering_device, answering_section, trained_as

    subject = open_evaluated_model(name)
    section, device = answering_section(subject), answering_device(None)
    return open_answerer(subject, trained_as(subject), section, device)


def _begun(answerer: Answerer, wanted: dict[str, Any]) -> Talk:
    """Return a conversation by the settings of the page, which has checked them."""
    from gptoss_tune.chat.talk import Talk
    from gptoss_tune.evaluate.generate import Sampling

    sampling = Sampling(wanted["max_new_tokens"], wanted["temperature"])
    return Talk(answerer, sampling, wanted["instructions"], wanted["effort"])


def _answer(talk: Talk, question: str, inbox: _Inbox, say: Say) -> None:
    """Answer one question; a stop ends the answer alone."""
    say({"event": "asked", "text": question})

    def show(delta: Delta) -> None:
        say({"event": "said", "channel": delta.label, "text": visible(delta.text)})

    inbox.stopped.clear()
    try:
        ended = talk.ask(question, show, inbox.stopped.is_set).ended
    except (RuntimeError, GptossTuneError) as error:
        ended = "error"
        say({"event": "trouble", "message": shown_safely(cause_of(error) or str(error))})
    say({"event": "answered", "ended": ended})


class _Inbox:
    """Lines of the input, read on a thread of their own, so that a stop is heard in an answer.

    Attributes:
        stopped: Whether the answer is to end, or there is nobody left to hear it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any]:
        """Return the next message; the process ends when there will be no more."""
        return self._messages.get()

    def _read(self) -> None:
        for line in self._stream:
            message = json.loads(line)
            if message.get("stop"):
                self.stopped.set()
            else:
                self._messages.put(message)
        # The page's server is gone: an answer would be for nobody.
        os._exit(0)


if __name__ == "__main__":
    main()
