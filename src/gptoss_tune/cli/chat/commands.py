"""What begins with a slash in a conversation that is typed.

A command is a slash and a word, ``/effort low``. ``/etc/hosts is what?`` is a message, since its
first word is no single word behind the slash; ``//help`` sends ``/help``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gptoss_tune.chat.saving import save_conversation
from gptoss_tune.chat.tokens import describe_tokens
from gptoss_tune.display import one_line
from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import EFFORTS, Effort

if TYPE_CHECKING:
    from gptoss_tune.cli.chat.session import Session

_COMMAND: Final = re.compile(r"/([A-Za-z][A-Za-z-]*)(?:\s+(.*))?", re.DOTALL)
_SENT_AS_IT_IS: Final = "//"
_NONE: Final = "none"
_MOST_TOKENS: Final = 131_072
_LONGEST_SHOWN: Final = 60


class Leave(Exception):
    """Somebody asks to leave."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        usage: What is typed behind its name.
        about: What it does, for ``/help``.
        run: Does it.
        choices: What completes its argument.
        is_listed: Whether ``/help`` names it; another name of a command is not.
    """

    usage: str
    about: str
    run: Callable[[Session, str], None]
    choices: tuple[str, ...] = ()
    is_listed: bool = True


def command_in(text: str) -> tuple[str, str] | None:
    """Return the name and the argument of a command; ``None`` for a message."""
    match = _COMMAND.fullmatch(text)
    return None if match is None else (match[1].lower(), (match[2] or "").strip())


def message_in(text: str) -> str:
    """Return what is sent of a message: one that begins with two slashes has one of them."""
    return text[1:] if text.startswith(_SENT_AS_IT_IS) else text


def unknown(name: str) -> str:
    """Return what to say of a command that there is not."""
    near = difflib.get_close_matches(name, COMMANDS, 1)
    meant = f"did you mean /{near[0]}? " if near else ""
    return (
        f"there is no /{name}, and nothing was sent; {meant}/help lists what there is, "
        f"//{name} sends a text that begins with a slash"
    )


def completions() -> dict[str, Iterable[str]]:
    """Return what completes the commands."""
    return {f"/{name}": one.choices for name, one in COMMANDS.items() if one.is_listed}


def _alone(name: str, argument: str) -> None:
    if argument:
        raise DataError(f"/{name} takes nothing behind it; got '{one_line(argument)}'")


def _exit(session: Session, argument: str) -> None:
    _alone("exit", argument)
    raise Leave


def _help(session: Session, argument: str) -> None:
    _alone("help", argument)
    listed = [(f"/{n} {one.usage}", one.about) for n, one in COMMANDS.items() if one.is_listed]
    listed.append(("//text", "send a text that begins with a slash"))
    listed.append(("Ctrl-C", "end the answer, or clear the line; twice on an empty one: leave"))
    listed.append(("Ctrl-D", "leave"))
    if session.editor is not None:
        listed += session.editor.keys
    width = max(len(left) for left, _ in listed) + 2
    session.say("\n".join(f"{left:<{width}}{about}" for left, about in listed))


def _reset(session: Session, argument: str) -> None:
    _alone("reset", argument)
    gone, session.refused = session.talk.reset(), None
    kept = " (the instructions stay)" if session.talk.instructions else ""
    forgotten = f"; {_turns(gone)} forgotten" if gone else ""
    session.say(f"a new conversation{forgotten}{kept}", "dim")


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _turns(number: int) -> str:
    return "1 question is" if number == 1 else f"{number} questions are"


def _undo(session: Session, argument: str) -> None:
    _alone("undo", argument)
    text, session.refused = session.talk.undo(), None
    session.say(f"taken back: {_short(text)}", "dim")


def _retry(session: Session, argument: str) -> None:
    _alone("retry", argument)
    talk = session.talk
    if session.refused is not None:
        session.ask(session.refused)
        return
    before = list(talk.turns)
    question = talk.undo()
    try:
        session.ask(question)
    finally:
        if len(talk.turns) < len(before):  # no other answer came
            talk.turns = before
            session.say("the answer that was there stays", "dim")


def _continue(session: Session, argument: str) -> None:
    _alone("continue", argument)
    session.show(session.talk.go_on)


def _effort(session: Session, argument: str) -> None:
    talk = session.talk
    if argument:
        known: dict[str, Effort] = {effort: effort for effort in EFFORTS}
        if argument.lower() not in known:
            raise DataError(f"'{one_line(argument)}' is no effort; expected {', '.join(EFFORTS)}")
        talk.effort = known[argument.lower()]
        session.say(f"reasoning effort {talk.effort}, from the next question on", "dim")
        return
    effort = talk.effort or session.usual_effort or "as the server has it"
    session.say(f"reasoning effort {effort}")


def _tokens(session: Session, argument: str) -> None:
    _alone("tokens", argument)
    session.say("\n".join(describe_tokens(session.talk)))


def _max_new_tokens(session: Session, argument: str) -> None:
    talk = session.talk
    if argument:
        number = int(argument) if re.fullmatch(r"[0-9]{1,7}", argument) else 0
        if not 1 <= number <= _MOST_TOKENS:
            raise DataError(
                f"'{one_line(argument)}' is no length; expected a number from 1 to {_MOST_TOKENS:,}"
            )
        talk.sampling = replace(talk.sampling, max_new_tokens=number)
    session.say(f"answers of up to {talk.sampling.max_new_tokens:,} tokens, thoughts included")


def _instructions(session: Session, argument: str) -> None:
    talk = session.talk
    if not argument:
        session.say(talk.instructions or "no developer instructions")
        return
    talk.instructions = None if argument.lower() == _NONE else argument
    what = "no instructions" if talk.instructions is None else "these instructions"
    session.say(f"{what}, from the next question on", "dim")


def _save(session: Session, argument: str) -> None:
    if not argument:
        raise DataError("/save needs a file: /save rows.jsonl")
    known: dict[str, Effort] = {effort: effort for effort in EFFORTS}
    usual = known.get(session.usual_effort or "")
    session.say(save_conversation(session.talk, Path(argument), usual).describe())


COMMANDS: Final[dict[str, Command]] = {
    "help": Command("", "this list", _help),
    "reset": Command("", "begin a new conversation", _reset),
    "undo": Command("", "take the last question and its answer back", _undo),
    "retry": Command("", "ask the last question again", _retry),
    "continue": Command("", "let an answer go on that was cut or stopped", _continue),
    "effort": Command("[low|medium|high]", "how long to think, or show it", _effort, EFFORTS),
    "instructions": Command("[TEXT|none]", "developer instructions, or show them", _instructions),
    "system": Command("", "another name of /instructions", _instructions, is_listed=False),
    "max-new-tokens": Command("[NUMBER]", "longest answer, or show it", _max_new_tokens),
    "tokens": Command("", "what the conversation and the last answer take", _tokens),
    "save": Command(
        "FILE", "add the conversation to a file, as a row to train", _save, ("<path>",)
    ),
    "exit": Command("", "leave; so do exit and quit", _exit),
    "quit": Command("", "another name of /exit", _exit, is_listed=False),
}
