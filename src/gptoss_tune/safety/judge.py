"""One judgement of a model behind an address: a label, an abstention, or no answer at all.

The judge is a stranger, and what it reads was written by a model under test. A label is taken from
one JSON object, or from a single digit, that is the whole answer; anything else is an abstention,
which is counted and never guessed at: a digit found somewhere in a sentence may be quoted from the
answer that is judged. A server that gives no answer (an error, a page, too much, too late) is tried
again, and after that the answer is not judged; the two are kept apart.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gptoss_tune.display import HIDDEN, one_line, without_credentials
from gptoss_tune.errors import MachineError
from gptoss_tune.export.openai_server import post
from gptoss_tune.files.strict_json import parse
from gptoss_tune.recipe.evaluation_schema import JudgeSection
from gptoss_tune.safety.policy import Policy, framed, is_cut

LONGEST_KEPT: Final = 4_000
"""Characters of a judge's own words that the report keeps."""
_LABELS: Final = ("label", "violation")
_TRIED_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_OF_THIS_EXCHANGE: Final = frozenset({400, 413, 422})
_PAUSES_S: Final = (1.0, 4.0, 15.0, 30.0)

Outcome = Literal["label", "abstained", "not judged"]


@dataclass(frozen=True)
class Judgement:
    """What became of one answer.

    Attributes:
        outcome: ``label``; ``abstained``: the judge answered without a label that can be read;
            ``not judged``: there was no answer.
        label: 1 violates the policy, 0 does not; ``None`` without a label.
        said: The judge's own words, or why there are none.
        cut: Whether the judge was given a part alone, of what was asked or answered.
        refused: Whether a server that is there would not take this exchange, such as one that is
            too long for it; others may be judged all the same.
    """

    outcome: Outcome
    label: int | None
    said: str
    cut: bool = False
    refused: bool = False


@dataclass(frozen=True)
class _Failed:
    """Why one try gave no answer, if another may help, and if the exchange is what is refused."""

    reason: str
    again: bool = True
    refused: bool = False


def read_label(text: str) -> int | None:
    """Return the label that a judge's whole answer is; ``None`` for anything else.

    ``{"label": 1, ...}``, ``{"violation": 0}`` (as the guide of gpt-oss-safeguard names it) or the
    digit alone.
    """
    stripped = text.strip()
    if stripped in ("0", "1"):
        return int(stripped)
    try:
        answer = parse(stripped.encode("utf-8", "replace"))
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    named = [answer[name] for name in _LABELS if name in answer]
    if not named or any(type(one) is not int or one not in (0, 1) for one in named):
        return None
    return named[0] if len(set(named)) == 1 else None


@dataclass
class Judge:
    """A server with OpenAI's chat completions, and the policy it applies.

    Attributes:
        section: Where it is, and how it is asked.
        policy: What it applies.
        wait: Called with the seconds between two tries.
    """

    section: JudgeSection
    policy: Policy
    wait: Callable[[float], None] = time.sleep
    _key: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Look the key up.

        Raises:
            MachineError: Its variable is not set, or holds no key that a header can.
        """
        name = self.section.api_key_env
        if name is None:
            return
        key = os.environ.get(name, "").strip()
        if not key or not (key.isascii() and key.isprintable()):
            raise MachineError(
                f"the environment variable {name} that is to hold the judge's key is "
                f"{'not set' if not key else 'no key of plain characters'}; set it, or remove "
                "api_key_env from the judge"
            )
        self._key = key

    @property
    def address(self) -> str:
        """Where it is asked."""
        url = self.section.url or ""
        return url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"

    def trial(self) -> None:
        """Have a harmless answer judged, so that a judge who cannot is found before the run.

        Raises:
            MachineError: It does not answer, or with no label that can be read.
        """
        found = self.judge("What is the capital of Norway?", "Oslo.", tries=2)
        if found.outcome == "label":
            return
        raise MachineError(
            f"the judge {self.section.model} at {self.address} "
            + (
                f"answered a trial with no label: {_short(found.said)!r}; expected "
                '{"label": 0, ...} or a single digit: name a model that follows a policy, such as '
                "openai/gpt-oss-safeguard-20b, or raise its max_tokens"
                if found.outcome == "abstained"
                else f"cannot be asked: {found.said}; start it, for example with "
                "`vllm serve openai/gpt-oss-safeguard-20b`, or correct evaluation.safety"
            )
        )

    def judge(self, request: str, answer: str, *, tries: int | None = None) -> Judgement:
        """Return what the judge makes of an answer; it never raises for what a server does.

        Args:
            request: What was asked.
            answer: What was answered.
            tries: In all; ``None``: one and ``retries`` more.
        """
        body = {
            "model": self.section.model,
            "messages": [
                {"role": "system", "content": self.policy.instructions},
                {"role": "user", "content": framed(request, answer)},
            ],
            "temperature": 0,
            "max_tokens": self.section.max_tokens,
        }
        cut, failed = is_cut(request, answer), _Failed("")
        for tried in range(tries or self.section.retries + 1):
            if tried:
                self.wait(_PAUSES_S[min(tried, len(_PAUSES_S)) - 1])
            said = self._asked(body)
            if isinstance(said, str):
                label = read_label(said)
                outcome: Outcome = "abstained" if label is None else "label"
                return Judgement(outcome, label, said[:LONGEST_KEPT], cut)
            failed = said
            if not failed.again:
                break
        return Judgement("not judged", None, self._safe(failed.reason), cut, failed.refused)

    def _asked(self, body: dict[str, Any]) -> str | _Failed:
        """Return the judge's words, or why there are none."""
        limit = self.section.timeout_seconds
        try:
            answer = post(self.address, body, key=self._key, timeout_s=limit)
        except urllib.error.HTTPError as error:
            return _Failed(
                f"HTTP {error.code}", error.code in _TRIED_AGAIN, error.code in _OF_THIS_EXCHANGE
            )
        except TimeoutError:
            return _Failed(f"no whole answer within {limit:g} s")
        except ValueError as error:
            return _Failed(f"the server's answer is no JSON ({error})")
        except (OSError, http.client.HTTPException) as error:
            return _Failed(str(error) or type(error).__name__)
        said = _content(answer)
        if said is None:
            return _Failed("the server's answer has no choices[0].message")
        return said

    def _safe(self, text: str) -> str:
        if self._key is not None:
            text = text.replace(self._key, HIDDEN)
        return _short(without_credentials(text))


def _content(answer: Any) -> str | None:
    """Return the text of the first choice; an empty one where the message has none."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _short(text: str) -> str:
    return one_line(" ".join(text.split()))[:300]
