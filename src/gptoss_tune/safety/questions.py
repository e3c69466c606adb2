"""What a safety evaluation asks: read once, before any weights, and put to both sides alike.

Each row of ``evaluation.prompts`` counts once, at its first effort: a prompt at three efforts would
be three outcomes that hang together, and an interval over them too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.evaluate.parse import Answer
from gptoss_tune.evaluate.prompts import Question, read_questions
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.harmony.dataset.load import sample_settings
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.vocabulary import CHANNEL, MESSAGE, Vocabulary
from gptoss_tune.recipe import DataSection, EvaluationSection
from gptoss_tune.safety.hints import Planted, plant

WITHOUT_ANALYSIS: Final = "final"
"""The channel in which an answer is made to begin."""


@dataclass(frozen=True)
class Asked:
    """Every question, by what it is there for.

    Attributes:
        prompts: Places in ``evaluation.prompts``' questions of the first of each row.
        questions: Those.
        probes: Harmless probes.
        requests: What ought to be refused.
        hinted: Graded prompts with a hint.
        bare: Places in ``questions`` of those put again without analysis.
        opening: Ids that begin an answer in the final channel.
    """

    prompts: tuple[int, ...]
    questions: tuple[Question, ...]
    probes: tuple[Question, ...]
    requests: tuple[Question, ...]
    hinted: tuple[Planted, ...]
    bare: tuple[int, ...]
    opening: tuple[int, ...]

    @property
    def own_prompts(self) -> list[tuple[int, ...]]:
        """Ids of what this room asks besides ``evaluation``'s prompts and probes, in order."""
        return [
            *(question.prompt_ids for question in self.requests),
            *(planted.question.prompt_ids for planted in self.hinted),
            *((*self.questions[n].prompt_ids, *self.opening) for n in self.bare),
        ]


@dataclass(frozen=True)
class Side:
    """The answers of one model, in the order of ``Asked``."""

    questions: list[Answer]
    probes: list[Answer]
    requests: list[Answer]
    hinted: list[Answer]
    bare: list[Answer]


def read_asked(
    section: EvaluationSection,
    data: DataSection,
    vocabulary: Vocabulary,
    questions: Sequence[Question],
    probes: Sequence[Question],
) -> Asked:
    """Read the requests, and make the questions that are put a second time.

    Args:
        section: What is asked.
        data: How rows are read and become tokens, as in training.
        vocabulary: Of the model.
        questions: Of ``evaluation.prompts``.
        probes: Of ``evaluation.drift.probes``.

    Raises:
        DataError: Lists every row that cannot be asked, by file and line.
    """
    safety, settings = section.safety, sample_settings(data)
    renderer = Renderer(vocabulary, settings.render)
    requests = (
        []
        if safety.requests is None
        else read_questions(
            safety.requests,
            renderer,
            limit=safety.max_requests,
            efforts=[data.reasoning_effort],
            max_new_tokens=section.max_new_tokens,
            reading=settings.reading,
        )
    )
    places: dict[str, int] = {}
    if safety.reads_prompts:
        for place, question in enumerate(questions):
            places.setdefault(question.source, place)
    firsts = tuple(places.values())
    once = tuple(questions[n] for n in firsts)
    graded = tuple(n for n, question in enumerate(once) if question.grader is not None)
    return Asked(
        prompts=firsts,
        questions=once,
        probes=tuple(probes),
        requests=tuple(requests),
        hinted=tuple(plant(once, renderer)) if safety.hints else (),
        bare=graded if safety.without_analysis else (),
        opening=(CHANNEL, *vocabulary.encode(WITHOUT_ANALYSIS), MESSAGE),
    )


def listed_files(what: str, paths: Sequence[str] | None, rows: int, limit: int) -> dict[str, Any]:
    """Return which files were asked from, with their hashes, and how many rows of them."""
    files = [file for path in paths or () for file in (find_files(path) or ())]
    return {
        "what": what,
        "files": [{"file": path.name, "sha256": sha256_of(path)} for path, _ in files],
        "rows": rows,
        "limit_reached": rows >= limit,
    }
