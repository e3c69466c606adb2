"""A call that the model wrote -> what its environment is asked, or why it is not asked.

Both spellings of a header mean the same, and the parser reads both::

    <|channel|>commentary to=functions.price <|constrain|>json<|message|>{"item": "pear"}<|call|>
     to=functions.price<|channel|>commentary json<|message|>{"item": "pear"}<|call|>

A call that cannot be made has a result too: the model is shown what was wrong and may try again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gptoss_tune.environments.environment import Tool, ToolUse
from gptoss_tune.environments.rows import UnknownCall
from gptoss_tune.environments.tools import Result, as_text, check_arguments
from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.parse import Said
from gptoss_tune.grading.answer import Call
from gptoss_tune.harmony.conversation import Header, Message

CODE: Final = "python"
"""The built-in tool whose argument is code, not JSON."""
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
"""Who speaks in harmony by another name than a tool's."""
_RECIPIENT: Final = re.compile(r"[\w-]{1,64}(\.[\w-]{1,64})?", re.ASCII)


@dataclass(frozen=True)
class Offered:
    """A tool that the model was told of.

    Attributes:
        parameters: JSON schema of its arguments, as it was declared.
        tool: What runs it; ``None``: nothing does, the call itself is asked for.
    """

    parameters: Mapping[str, Any] | None
    tool: Tool | None


@dataclass(frozen=True)
class Asked:
    """A call as it was read.

    Attributes:
        call: Name and arguments as written.
        recipient: Whom it is addressed to.
        channel: That it stands in.
        work: Calls the tool; ``None``: it is not called.
        mistake: Why not, or ``None``.
        by_model: Whether that is the model's mistake.
        answers: Whether the call itself was asked for, and is the answer.
    """

    call: Call
    recipient: str
    channel: str
    work: Callable[[], Any] | None
    mistake: str | None = None
    by_model: bool = True
    answers: bool = False

    def use(self, result: Result | None) -> ToolUse:
        """Return the call with what came of it.

        Args:
            result: Of ``work``, where that was called.

        Raises:
            MachineError: The tool found that the machine does not work.
        """
        if result is not None and isinstance(result.error, MachineError):
            raise result.error
        mistake, by_model = self.mistake, self.by_model
        if result is not None and isinstance(result.error, UnknownCall):
            mistake, by_model = str(result.error), True
        elif result is not None and result.failure is not None:
            mistake, by_model = f"the tool failed: {result.failure}", False
        elif result is not None:
            try:
                return ToolUse(self.call, as_text(result.value))
            except ValueError as error:
                mistake, by_model = f"the tool failed: {error}", False
        if mistake is None:
            return ToolUse(self.call, "")
        return ToolUse(self.call, f"Error: {mistake}", mistake, by_model)

    def message(self, use: ToolUse) -> Message:
        """Return the tool's message to the model, in the channel of the call."""
        header = Header("tool", self.recipient, "assistant", self.channel)
        return Message(header, use.result, 0.0)


def can_be_answered(said: Said) -> bool:
    """Whether a call has a header that a tool's message can answer, whatever it calls.

    The answer's author is the recipient, so that a role as the name of a tool would make it a
    message of that role.
    """
    recipient = _RECIPIENT.fullmatch(said.recipient or "")
    if recipient is None or said.recipient in _ROLES:
        return False
    return said.channel in ("analysis", "commentary")


def read_call(said: Said, offered: Mapping[str, Offered]) -> Asked:
    """Return what a call asks for.

    Args:
        said: The message, which ``can_be_answered``.
        offered: Tools by recipient, ``functions.price`` or ``python``.
    """
    recipient, channel = said.recipient or "", said.channel or "commentary"
    call = Call(recipient.removeprefix("functions."), said.content)
    found = offered.get(recipient)
    if found is None:
        known = ", ".join(sorted(offered)) or "none"
        mistake = f"there is no tool {recipient}; the tools are: {known}"
        return Asked(call, recipient, channel, None, mistake)
    if recipient == CODE:
        work = None if found.tool is None else partial(found.tool.run, said.content)
        return Asked(call, recipient, channel, work, answers=work is None)
    checked = check_arguments(said.content, found.parameters, call.name)
    answers = found.tool is None
    if checked.mistake is not None:
        known = (call, recipient, channel, None, checked.mistake, checked.by_model)
        return Asked(*known, answers=answers)
    work = None if found.tool is None else partial(found.tool.run, **checked.arguments)
    return Asked(call, recipient, channel, work, answers=answers)
