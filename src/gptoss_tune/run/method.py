"""The method of a run in words, by its record: for its page, and for its card on the Hub.

A record may be damaged or of another version, so nothing of it is taken for granted: a name that is
no method's gives no words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_tune.recipe.schema import METHODS, method_name

_WORDS = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimisation (DPO)",
    "ipo": "identity preference optimisation (IPO)",
    "simpo": "simple preference optimisation (SimPO)",
    "orpo": "odds ratio preference optimisation (ORPO)",
    "kto": "Kahneman-Tversky optimisation (KTO)",
    "grpo": "group relative policy optimisation (GRPO)",
}
_WITH_TEXT = "supervised fine-tuning and continued pretraining on raw text"
_TEXT_ALONE = "continued pretraining on raw text"
_REFERENCES = {
    "base": "the base",
    "init_adapter": "the adapter that the run began from",
    "none": "none",
}
_MOST = 10**15
_PER_TOKEN = ("simpo", "orpo")


@dataclass(frozen=True)
class Method:
    """The method of a run, for readers.

    Attributes:
        name: As the recipe spells it; empty where the record names none of ours.
        words: The field's name of it.
        settings: Of its section, unchecked.
    """

    name: str
    words: str
    settings: Mapping[str, Any]

    @property
    def preferences(self) -> bool:
        """Whether it learns from preferences."""
        return self.name not in ("", "sft", "grpo")

    @property
    def reinforcement(self) -> bool:
        """Whether it learns from rewards of what the model itself samples."""
        return self.name == "grpo"

    @property
    def beyond_sft(self) -> bool:
        """Whether it is known to be another method than supervised fine-tuning."""
        return self.name not in ("", "sft")

    @property
    def is_told(self) -> bool:
        """Whether its words say more than that a model was fine-tuned on answers."""
        return self.beyond_sft or self.words in (_WITH_TEXT, _TEXT_ALONE)

    @property
    def sample(self) -> str:
        """What a row of its data is: a pair, a labelled answer, a prompt, a conversation."""
        if self.reinforcement:
            return "prompt"
        return "answer" if self.name == "kto" else "pair" if self.preferences else "conversation"

    @property
    def sides(self) -> tuple[str, str]:
        """What the answers are called that gain and that lose."""
        return ("good", "bad") if self.name == "kto" else ("chosen", "rejected")

    @property
    def loss_unit(self) -> str:
        """What the loss is a mean over."""
        if self.preferences:
            return f"mean per {self.sample}"
        if self.reinforcement:
            return "objective, mean of a step"
        return "nats per token" if self.name else "mean"

    @property
    def per_token(self) -> bool:
        """Whether the log-probabilities that it compares are means over tokens."""
        return self.name in _PER_TOKEN or self.settings.get("length_normalized") is True

    @property
    def sft_term(self) -> bool:
        """Whether its section has a weight for the chosen answer's own loss."""
        return self.name in METHODS and "sft_weight" in METHODS[self.name].model_fields


def method_of(record: Mapping[str, Any]) -> Method:
    """Return the method of a run by its record; a recipe without the section means ``sft``.

    Args:
        record: ``run.json``, unchecked.
    """
    recipe = record.get("recipe")
    settings = recipe.get("method", {}) if isinstance(recipe, dict) else None
    name = method_name(settings) if isinstance(settings, dict) else ""
    known = name if name in METHODS else ""
    words = _WORDS.get(known, "")
    if known == "sft" and (trained := _trained_by_channel(record)).get("text"):
        words = _WITH_TEXT if len(trained) > 1 else _TEXT_ALONE
    return Method(known, words, settings if isinstance(settings, dict) else {})


def _trained_by_channel(record: Mapping[str, Any]) -> dict[str, int]:
    """Return the channels that tokens were trained of, as far as the record says."""
    tokens = record.get("tokens")
    found = tokens.get("trained_by_channel") if isinstance(tokens, dict) else None
    counts = found.items() if isinstance(found, dict) else ()
    return {name: count for name, count in counts if _is_sane(count, int) and count}


def reference_name(of: object) -> str:
    """Return what the log-probabilities were compared with, as words; empty for no such word."""
    return _REFERENCES.get(of, "") if isinstance(of, str) else ""


def reference_words(record: Mapping[str, Any]) -> str:
    """Return the reference of a run and what its pass took; empty where the record has none.

    Args:
        record: ``run.json``, unchecked.
    """
    found = record.get("reference")
    if not isinstance(found, dict) or not (of := reference_name(found.get("of"))):
        return ""
    took = [
        f"{found[name]:,} {name}" for name in ("rows", "tokens") if _is_sane(found.get(name), int)
    ]
    if found.get("cached") is True:
        took.append("read from the cache")
    elif _is_sane(seconds := found.get("seconds"), int, float):
        took.append(f"in {seconds:,.0f} s")
    return of + (f" ({', '.join(took)})" if took else "")


def _is_sane(value: object, *kinds: type) -> bool:
    return type(value) in kinds and 0 <= value < _MOST  # pyright: ignore[reportOperatorIssue]
