"""The loop of a conversation: a message, a command or an answer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console

from gptoss_tune.chat.talk import Answer, InProcess, Talk
from gptoss_tune.chat.tokens import completion_tokens
from gptoss_tune.cli.chat.commands import COMMANDS, Leave, command_in, message_in, unknown
from gptoss_tune.cli.chat.editor import Editor
from gptoss_tune.cli.chat.screen import Display, Screen, fitted
from gptoss_tune.cli.chat.terminal import one_interrupt, shows_escapes
from gptoss_tune.display import one_line, shown_safely
from gptoss_tune.error_hints import cause_of
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.evaluate.channels import Delta

Ask = Callable[[Callable[[Delta], None]], Answer]

_LEAVE = {"exit", "quit"}
_HINT = "/exit or Ctrl-D leaves, /help lists more"
_AGAIN = "Ctrl-C once more, /exit or Ctrl-D leaves"


class Session:
    """A conversation on a screen.

    Attributes:
        talk: The conversation.
        usual_effort: At which it is asked where nothing says otherwise; ``None``: a server's own.
        editor: Where it is typed; ``None``: nobody types.
        refused: The last question, where no answer was given to it.
    """

    def __init__(
        self, talk: Talk, screen: Screen, usual_effort: str | None, editor: Editor | None = None
    ) -> None:
        """Show ``talk`` on ``screen``."""
        self.talk, self.usual_effort, self.editor = talk, usual_effort, editor
        self._screen = screen
        dumb = screen.out.isatty() and not shows_escapes(screen.out)
        self._console = Console(
            file=screen.out,
            highlight=False,
            soft_wrap=True,
            force_terminal=False if dumb else None,
        )
        self._failed = False
        self.refused: str | None = None

    @property
    def in_process(self) -> bool:
        """Whether this process holds the model."""
        return isinstance(self.talk.answers, InProcess)

    def say(self, text: str, style: str | None = None) -> None:
        """Show a line beside the conversation."""
        shown = fitted(shown_safely(text), self._screen.out)
        self._console.print(shown, style=style, markup=False, emoji=False)

    def ask(self, text: str) -> Answer:
        """Show the answer to a message.

        Raises:
            GptossTuneError: There is none.
        """
        self.refused, self._failed = text, True
        answer = self.show(lambda display: self.talk.ask(text, display))
        self._failed = False
        if self.talk.turns and self.talk.turns[-1].answer is answer:
            self.refused = None
        return answer

    def show(self, ask: Ask) -> Answer:
        """Show an answer as it comes, and how it ended; Ctrl-C ends it alone.

        Raises:
            GptossTuneError: There is none.
        """
        display = Display(self._console)
        with self._keys_wait():
            try:
                with one_interrupt():
                    answer = ask(display)
            finally:
                if display.written:
                    self._console.print()
        if ended := self._why_it_ended(answer, display):
            self.say(ended, "yellow")
        return answer

    @contextmanager
    def _keys_wait(self) -> Iterator[None]:
        """Keep keys unseen for the next line."""
        with nullcontext() if self.editor is None else self.editor.waiting():
            yield

    def read_all(self, texts: Iterable[str]) -> None:
        """Ask messages that nobody types: each is one, and no word is a command.

        Raises:
            KeyboardInterrupt: Ctrl-C, which ends all of it here.
            GptossTuneError: A message was not answered.
        """
        for text in texts:
            if self.ask(text).ended == "interrupt":
                raise KeyboardInterrupt

    def run(self, editor: Editor) -> None:
        """Talk until somebody leaves."""
        self.say(_HINT, "dim")
        pressed = False
        while True:
            try:
                typed = editor.read()
            except EOFError:
                self.say("")
                return
            except KeyboardInterrupt:
                if pressed:
                    return
                pressed = True
                self.say(_AGAIN, "dim")
                continue
            pressed = self._failed = False
            try:
                self._take(typed.strip())
            except Leave:
                return
            except KeyboardInterrupt:  # pressed before an answer began, or after it had ended
                self.say("")
            except (GptossTuneError, RuntimeError, OSError) as error:
                cause = str(error) if isinstance(error, GptossTuneError) else cause_of(error)
                if cause is None:
                    raise  # it may be a fault of ours, and its traceback is what a report needs
                self.say(f"error: {cause}", "red")
                if self._failed:
                    self.say("the question is taken back; /retry asks it again", "yellow")

    def _take(self, text: str) -> None:
        """Do what a message asks.

        Raises:
            Leave: It asks to leave.
            GptossTuneError: It cannot be done.
        """
        if not text:
            return
        if text in _LEAVE:
            raise Leave
        found = command_in(text)
        if found is None:
            self.ask(message_in(text))
        elif found[0] in COMMANDS:
            with self._keys_wait(), one_interrupt():
                COMMANDS[found[0]].run(self, found[1])
        else:
            self.say(unknown(found[0]), "yellow")

    def _why_it_ended(self, answer: Answer, display: Display) -> str | None:
        """Return what to say of an answer that the model itself did not end, or ended oddly."""
        typed, most = self.editor is not None, self.talk.sampling.max_new_tokens
        goes_on = typed and self.in_process
        if answer.ended == "length":
            more = "/max-new-tokens allows more" if typed else "see --max-new-tokens"
            if not self.in_process:
                came = completion_tokens(answer)
                if came is None:
                    return f"[cut by the server; where that is before {most} tokens, by its limit]"
                if came < most:
                    return (
                        f"[cut by the server after {came} tokens, {most} were allowed: its own "
                        "limit, or its context is full]"
                    )
            if goes_on:
                more = f"/continue goes on, {more}"
            elif typed:
                more = f"{more}, then /retry"
            return f"[cut after {most} tokens, thoughts included; {more}]"
        if answer.ended == "interrupt":
            turns = self.talk.turns
            if not (turns and turns[-1].answer is answer):
                return "[stopped by Ctrl-C; the question is taken back]"
            return "[stopped by Ctrl-C" + ("; /continue goes on]" if goes_on else "]")
        if answer.ended == "other":
            reason = one_line(answer.stream.reason or "no reason")
            return f"[ended by the server: {reason}; the answer may not be whole]"
        if answer.ended == "call" and typed:
            return "[a call of a tool, which nothing here runs; /undo takes it back]"
        return None if display.written else "[an empty answer]"
