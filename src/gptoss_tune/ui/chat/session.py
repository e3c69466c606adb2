"""The chat's owner: one worker at a time, and what it has said so far as numbered events."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

from gptoss_tune.display import shown_safely
from gptoss_tune.errors import RecipeError

State = Literal["none", "loading", "ready", "answering", "failed"]
_MOST_EVENTS: Final = 200_000
_MOST_TOLD: Final = 2000
_STATES: Final[dict[str, State]] = {
    "ready": "ready",
    "asked": "answering",
    "answered": "ready",
    "failed": "failed",
}


@dataclass
class ChatSession:
    """A model that is loading or loaded, in its process.

    Attributes:
        model: Its folder, as it is named in the page.
        process: The worker.
        log: What libraries and tracebacks write.
        state: What it does.
        events: What it said, from the first on.
    """

    model: str
    process: subprocess.Popen[str]
    log: Path
    state: State = "loading"
    events: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, model: str, folder: Path, log: Path) -> ChatSession:
        """Start the worker for the model in ``folder``.

        Args:
            model: What it is called.
            folder: Where it is.
            log: What it writes beside its events.
        """
        with log.open("wb") as written:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                encoding="utf-8",
                # Not ended by the Ctrl-C that ends the server, which ends it itself.
                start_new_session=True,
            )
        session = cls(model, process, log)
        assert process.stdout is not None
        threading.Thread(target=session._listen, args=(process.stdout,), daemon=True).start()
        return session

    def send(self, message: dict[str, Any]) -> None:
        """Send the worker a message.

        Raises:
            RecipeError: It has ended.
        """
        stream = self.process.stdin
        assert stream is not None
        try:
            stream.write(json.dumps(message) + "\n")
            stream.flush()
        except (OSError, ValueError):
            raise RecipeError("the model is not loaded any more; load it again") from None

    def close(self) -> None:
        """End the worker, which frees the memory of its model."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def _listen(self, stream: IO[str]) -> None:
        """Keep what the worker says, until it ends."""
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                event = json.loads(line)
                if len(self.events) < _MOST_EVENTS:
                    self.events.append(event)
                self.state = _STATES.get(event["event"], self.state)
        if self.state != "failed":
            self.events.append({"event": "failed", "message": self._why_it_ended()})
            self.state = "failed"

    def _why_it_ended(self) -> str:
        code = self.process.wait()
        with contextlib.suppress(OSError):
            said = self.log.read_text(encoding="utf-8", errors="replace").strip()
            return shown_safely(f"its process ended with code {code}: {said[-_MOST_TOLD:]}")
        return f"its process ended with code {code}"
