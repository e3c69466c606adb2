"""The grader ``rules``: passes where every rule of a list holds, and names each that does not.

```json
{"prompt": "Describe Oslo in at most 30 words, without commas.", "grader": "rules",
 "rules": [{"rule": "words", "at_most": 30}, {"rule": "no_commas"}]}
```

Loose, as IFEval has it: a rule holds where it does for the text, or for the text without its first
line, its last line or both, and each of these without its stars, so that ``Sure, here it is:`` and
bold type do not fail what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import Verdict
from gptoss_tune.grading.reading.settings import (
    LONGEST_ANSWER,
    TOO_LONG,
    refuse_unknown,
    take_choice,
    take_count,
    take_flag,
    take_texts,
)
from gptoss_tune.grading.rules.counted import AMOUNTS, COUNTED, check_counted
from gptoss_tune.grading.rules.stated import SCRIPTS, STATED
from gptoss_tune.harmony.fields import shown, take_listed, take_text

MOST_RULES: Final = 32
_SEPARATORS: Final = ("blank line", "***")
_LONGEST_TEXT: Final = 20_000


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: As in ``COUNTED`` or ``STATED``.
        settings: Its settings, in the order of their names.
    """

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    def broken_by(self, text: str) -> str | None:
        """Return why it does not hold for a text; ``None``: it does."""
        if self.name in COUNTED:
            return check_counted(self.name, text, dict(self.settings))
        return STATED[self.name][1](text, dict(self.settings))

    @property
    def shown(self) -> str:
        """It as a report shows it."""
        settings = [f"{key} {value}" for key, value in self.settings if key in AMOUNTS]
        return " ".join([self.name, *settings])


@dataclass(frozen=True)
class Rules:
    """Passes when every rule holds for the final text.

    Attributes:
        rules: What has to hold.
        loose: Whether each may hold for the text without its stars, first or last line.
    """

    rules: tuple[Rule, ...]
    loose: bool = False

    kind: ClassVar[str] = "rules"
    seconds: ClassVar[float] = 0.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        return "; ".join(rule.shown for rule in self.rules)

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Check each rule."""
        if given.final is None or not given.final.strip():
            return Verdict(False, "there is no final text")
        if len(given.final) > LONGEST_ANSWER:
            return Verdict(False, TOO_LONG)
        texts = variants(given.final) if self.loose else [given.final]
        broken: list[str] = []
        for rule in self.rules:
            reasons = [rule.broken_by(text) for text in texts]
            if None not in reasons:
                broken.append(f"{rule.name}: {reasons[0]}")
        return Verdict(not broken, "; ".join(broken) or None)


def variants(text: str) -> list[str]:
    """Return the texts that loose rules are checked on, the text itself first."""
    lines = text.split("\n")
    cut = (text, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1]))
    both = [*(part.strip() for part in cut), *(part.replace("*", "").strip() for part in cut)]
    return [text, *dict.fromkeys(part for part in both if part and part != text)]


def read_rules(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Rules:
    """Return the grader of the list under ``rules``, of the row or of the grader's settings.

    Raises:
        DataError: A rule is unknown, or lacks a setting.
    """
    refuse_unknown(settings, ("rules", "verdict"), source, Rules.kind)
    listed = take_listed(settings.get("rules", row.get("rules")), source, "rules")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_RULES:
        raise DataError(
            f"{source}: rules is {shown(listed)}; grader rules expects a list of 1 to {MOST_RULES} "
            'objects like {"rule": "words", "at_most": 50}'
        )
    rules = tuple(_read_rule(rule, row, source, f"rules[{n}]") for n, rule in enumerate(listed))
    verdict = take_choice(settings, "verdict", ("strict", "loose"), source, "grader rules")
    return Rules(rules, loose=verdict == "loose")


def _read_rule(rule: Any, row: dict[str, Any], source: str, what: str) -> Rule:
    if not isinstance(rule, dict):
        raise DataError(f'{source}: {what} is {shown(rule)}; expected {{"rule": ..., ...}}')
    settings = {key: value for key, value in rule.items() if value is not None}
    name = take_text(settings.pop("rule", None), source, f"{what}.rule")
    if name not in COUNTED and name not in STATED:
        known = ", ".join([*COUNTED, *STATED])
        raise DataError(f"{source}: {what}.rule is {shown(name)}; expected one of {known}")
    if name == "repeat_prompt" and isinstance(row.get("prompt"), str):
        settings.setdefault("prompt", row["prompt"])
    fields = COUNTED[name][1] if name in COUNTED else STATED[name][0]
    known = {field.rstrip("?") for field in fields} | set(AMOUNTS if name in COUNTED else ())
    refuse_unknown(settings, tuple(sorted(known)), f"{source}: {what}", name)
    missing = [field for field in fields if not field.endswith("?") and field not in settings]
    if missing:
        raise DataError(f"{source}: {what}: rule {name} needs {missing[0]}")
    if name in COUNTED and not settings.keys() & set(AMOUNTS):
        raise DataError(f"{source}: {what}: rule {name} needs {', '.join(AMOUNTS[:2])} or exactly")
    taken = {key: _take(key, value, source, f"{what}.{key}") for key, value in settings.items()}
    if taken.get("at_least", 0) > taken.get("at_most", 10**9):
        raise DataError(f"{source}: {what}: at_least is more than at_most; nothing can fit")
    return Rule(name, tuple(sorted(taken.items())))


def _take(key: str, value: Any, source: str, what: str) -> Any:
    """Return one setting of a rule."""
    if key in AMOUNTS:
        return take_count(value, source, what)
    if key in ("paragraph", "paragraphs"):
        return take_count(value, source, what, least=1)
    if key in ("keywords", "options"):
        return take_texts(value, source, what, most=100)
    if key == "fenced":
        return take_flag({key: value}, key, source, what.rpartition(".")[0])
    if key in ("separator", "script"):
        allowed = _SEPARATORS if key == "separator" else SCRIPTS
        return take_choice({key: value}, key, allowed, source, what.rpartition(".")[0])
    text = take_text(value, source, what)
    if not text.strip() or len(text) > _LONGEST_TEXT:
        raise DataError(f"{source}: {what} is {shown(text)}; expected a text that says something")
    if key == "letter" and len(text) != 1:
        raise DataError(f"{source}: {what} is {shown(text)}; expected one character")
    return text
