"""Long contexts with facts hidden in them, written when the suite is opened.

A text of short sentences about a harbour, of the project's own writing, is filled up from templates
to a wanted number of tokens. The fact that is asked for stands at a wanted depth, others of its
form (distractors) anywhere; with several needles the rest are spread evenly from the first on. The
same settings give the same text on every machine. Storing texts of 128k tokens was the alternative:
megabytes in every wheel, for one length each.

A locker has a number of six digits, and no other number in the text has more than three: an answer
is right when the wanted numbers are all of its digits, in the order asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from gptoss_tune.benchmark.suites.schema import Needles
from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.formats.registry import read_unanswered
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.sources.rows import Located

_SLACK: Final = 40
"""Tokens by which a prompt may be shorter than wanted: the longest sentence has fewer."""

_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "ship": (
        *("Marlin", "Blue Heron", "Sirius", "Old Betty", "Cormorant", "Lyra", "Northwind"),
        *("Pelican", "Saltmarsh", "Tern", "Halcyon", "Driftwood"),
    ),
    "cargo": (
        *("oranges", "slate", "rope", "bicycle parts", "coffee", "lamp oil", "window glass"),
        *("barley", "tar", "paper", "cork", "tiles", "salt", "tea"),
    ),
    "person": (
        *("the harbour master", "a night watchman", "the cook", "an apprentice", "the pilot"),
        *("a customs clerk", "the sail maker", "a dock hand", "the lighthouse keeper"),
    ),
    "place": (
        *("the north quay", "the fish market", "the dry dock", "the rope walk", "the old crane"),
        *("the customs house", "the east pier", "the boat sheds", "the signal tower"),
    ),
    "weather": (
        *("fog lay over the water", "a thin rain fell", "the wind came from the west"),
        *("the sun was already warm", "gulls sat on every post", "frost covered the planks"),
        *("the tide was low", "thunder rolled far out"),
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "colour": ("red", "green", "grey", "black", "yellow", "brown", "white"),
}
_SENTENCES: Final = (
    "On {day} {weather}, and {person} walked to {place} before breakfast.",
    "The {ship} brought {n} crates of {cargo}, which stood near {place} until noon.",
    "Nobody at {place} could say why the {colour} flag was up again.",
    "{person} counted {n} barrels of {cargo} and wrote the figure on a {colour} slip.",
    "When {weather}, the crew of the {ship} stayed below and mended nets.",
    "A letter for the captain of the {ship} had been left at {place} for {n} days.",
    "They painted the door of {place} {colour}, though {person} had asked for {colour2}.",
    "By {day} the {cargo} had been sold, all but {n} sacks that had got wet.",
    "{person} said that {place} had been quieter in other years.",
    "The {ship} and the {ship2} passed each other so close that {person} could hear both crews.",
    "It took {n} men to lift the {colour} boat out of the water at {place}.",
    "In the evening {weather}; {person} closed the shutters and lit a single lamp.",
    "Whoever buys {cargo} on a {day} pays a little less at {place}.",
    "The clock at {place} was {n} minutes slow, and {person} knew it.",
    "Along {place} somebody had drawn a {colour} line that led nowhere.",
    "After {n} weeks the {ship} came back with {cargo} and with stories about {cargo2}.",
)
_FIRST: Final = (
    *("Ada", "Bruno", "Clara", "Dorte", "Emil", "Fanny", "Gustav", "Hanne", "Ivo", "Jonna"),
    *("Karel", "Lene", "Milan", "Nora", "Otto", "Petra", "Rasmus", "Selma", "Tilda", "Viktor"),
)
_LAST: Final = (
    *("Brandt", "Castell", "Dorn", "Ekberg", "Falk", "Grell", "Holm", "Ibsen", "Jansson"),
    *("Kessler", "Lund", "Moser", "Nyman", "Olsen", "Prag", "Roth", "Strand", "Thorn", "Voss"),
)
_FACT: Final = "The number of the locker of {name} is {number}."
_BEFORE: Final = "Read these notes from a harbour. A question about them follows.\n\n"


def needle_rows(
    groups: Sequence[Needles], suite: str, renderer: Renderer, effort: Effort
) -> Iterator[Located]:
    """Yield the rows of all groups: each length at each depth.

    Args:
        groups: What is made.
        suite: Name of the suite, for the places of the rows.
        renderer: Counts the tokens of a prompt as it is asked.
        effort: Of the system message, for the count.

    Raises:
        DataError: The facts do not fit into a length.
    """
    for group in groups:
        for length in group.lengths:
            for depth in group.depths:
                at = f"{suite}:{length}@{depth:g}x{group.needles}"
                yield at, _row(group, length, depth, at, renderer, effort)


def _row(
    group: Needles, length: int, depth: float, at: str, renderer: Renderer, effort: Effort
) -> dict[str, object]:
    # A text for a seed: str seeds are hashed by value, the same on every machine.
    generator = random.Random(f"{group.seed} {length} {depth!r} {group.needles}")
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    chosen = generator.sample(names, group.needles + group.distractors)
    numbers = [str(n) for n in generator.sample(range(100_000, 1_000_000), len(chosen))]
    facts = [
        _FACT.format(name=name, number=number) for name, number in zip(chosen, numbers, strict=True)
    ]
    question = _question(chosen[: group.needles])
    bare = read_unanswered({"prompt": f"{_BEFORE}{' '.join(facts)}{question}"}, at)
    room = length - len(renderer.render_prompt(replace(bare, effort=effort)))
    if room < 0:
        raise DataError(
            f"{at}: the facts and the question alone have {length - room} tokens; raise the "
            "length, or ask for fewer needles and distractors"
        )
    sentences = _filling(generator, room, renderer)
    wanted = [(depth + number / group.needles) % 1.0 for number in range(1, group.needles)]
    places = [depth, *wanted, *(generator.random() for _ in range(group.distractors))]
    text = _woven(sentences, list(zip(places, facts, strict=True)))
    return {
        "prompt": f"{_BEFORE}{text}{question}",
        "pattern": r"^\D*" + r"\D+".join(numbers[: group.needles]) + r"\D*$",
    }


def _question(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"\n\nWhat is the number of the locker of {names[0]}? Answer with the number alone."
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        f"\n\nWhat are the numbers of the lockers of {listed}? Answer with the numbers alone, in "
        "this order, separated by commas."
    )


def _filling(generator: random.Random, room: int, renderer: Renderer) -> list[str]:
    """Return sentences of ``room`` tokens together, or at most ``_SLACK`` fewer."""
    found: list[str] = []
    while room > _SLACK:
        sentence = _sentence(generator)
        # A space begins a new piece for the tokenizer, so the parts have the tokens of the whole.
        room -= len(renderer.vocabulary.encode(f" {sentence}"))
        found.append(sentence)
    return found


def _sentence(generator: random.Random) -> str:
    drawn = {name: generator.choice(words) for name, words in _WORDS.items()}
    for name in ("ship", "cargo", "colour"):
        drawn[f"{name}2"] = generator.choice([w for w in _WORDS[name] if w != drawn[name]])
    text = generator.choice(_SENTENCES).format(n=generator.randint(3, 99), **drawn)
    return text[0].upper() + text[1:]


def _woven(sentences: Sequence[str], facts: Sequence[tuple[float, str]]) -> str:
    """Return the text with each fact at its share of the sentences."""
    at: dict[int, list[str]] = {}
    for place, fact in facts:
        at.setdefault(round(place * len(sentences)), []).append(fact)
    parts: list[str] = []
    for number in range(len(sentences) + 1):
        parts += at.get(number, [])
        parts += sentences[number : number + 1]
    return " ".join(parts)
