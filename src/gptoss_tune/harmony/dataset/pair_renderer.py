"""Rows of preferences -> samples: both answers to one prompt, or one answer with a label.

A pair is ONE sample, so that nothing can tear it: it is drawn, mixed, packed, held out and dropped
as a whole. Its documents stand one after the other, the chosen answer's first; there is one for
each answer, or more where several turns follow the shared prompt and each is served in a context of
its own (the chain of thought of earlier turns is gone from it, and each ends as it is served; turns
without thoughts share a document, in which an earlier answer's end is history and does not count)::

    <|start|>user ... 2+2 ... assistant <|channel|>final<|message|>4<|return|>      branch  1
    <|start|>user ... 2+2 ... assistant <|channel|>final<|message|>5<|return|>      branch -1

The prompt has the same tokens in both; a token of an answer counts with the row's weight.
Rejected: two samples that know each other by a number. Packing, held-out shares, micro-batches and
ranks would all have to keep them together.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.row_renderer import ReadRow, RowRenderer, Sample
from gptoss_tune.harmony.formats.detect import format_of
from gptoss_tune.harmony.formats.labelled import read_labelled
from gptoss_tune.harmony.formats.preference import Preference, read_preference
from gptoss_tune.harmony.render import CHANNEL_NUMBERS, Example, Span

CHOSEN, REJECTED = 1, -1


class Branch(NamedTuple):
    """One answer as it is served.

    Attributes:
        sign: 1 for a chosen or good answer, -1 for a rejected or bad one.
        documents: One for each context that a turn of it is served in.
        prompt: Tokens of the first document before the answer.
    """

    sign: int
    documents: list[Example]
    prompt: int


class PairRenderer(RowRenderer):
    """Turns preference pairs, or labelled answers, into samples."""

    def read(self, row: dict[str, Any], at: str, report: RowCounts) -> ReadRow:
        """Return a row's one sample, or none where it is dropped; that goes into ``report``.

        Raises:
            DataError: The row cannot be used.
        """
        report.formats[format_of(row, at)] += 1
        asked = 0
        if self.settings.kind.rows == "label":
            labelled = read_labelled(row, at, reading=self.settings.reading)
            answers, signs = [labelled.conversation], [CHOSEN if labelled.desirable else REJECTED]
            keys, dropped, notes = labelled.conversation.keys(), False, answers[0].notes
        else:
            pair = read_preference(row, at, reading=self.settings.reading)
            answers, signs = [pair.chosen, pair.rejected], [CHOSEN, REJECTED]
            dropped, notes = _note_pair(pair, at, report), pair.notes
            asked = pair.prompt_length
            (whole, prompt), (other, _) = pair.chosen.keys(), pair.rejected.keys()
            keys = (whole ^ (other * 3) % 2**64, prompt)
        special = sum(self.count_special_text(answer, report) for answer in answers)
        samples: list[Sample] = []
        if not dropped:
            samples = self._sample(self.branches(answers, signs, asked), at, report)
        report.note(notes, at)
        return ReadRow(answers[0], keys, special, samples)

    def branches(self, answers: list[Conversation], signs: list[int], asked: int) -> list[Branch]:
        """Render the answers to one prompt.

        Args:
            answers: Each with the prompt before it.
            signs: 1 for a chosen or good answer, -1 for the other.
            asked: How many messages of each of several are the prompt.

        Raises:
            DataError: The tokens before them are not the same, or cannot be made.
        """
        found, prompts = [], []
        for answer, sign in zip(answers, signs, strict=True):
            documents = self.renderer.render(answer)
            prompt = _before(documents[0]) if documents else 0
            if len(answers) > 1 and documents:
                begins_late = not answer.messages[asked].weight
                whole = self._whole(answer, asked) if begins_late else documents[0]
                prompts.append(whole.input_ids[: _before(whole)])
            found.append(Branch(sign, [self._counted(one) for one in documents], prompt))
        if any(not np.array_equal(prompts[0], other) for other in prompts[1:]):
            raise DataError(
                f"{answers[0].source}: chosen and rejected answer different prompts (the tokens "
                "before them differ); give both the same messages, tools and settings"
            )
        return found

    def _whole(self, answer: Conversation, asked: int) -> Example:
        """Return the first document of an answer of which every message counts.

        Its first messages may be context themselves, and are no part of the prompt for that.
        """
        messages = [
            message._replace(weight=float(place >= asked))
            for place, message in enumerate(answer.messages)
        ]
        return self.renderer.render(replace(answer, messages=messages, weight=1.0))[0]

    def _counted(self, document: Example) -> Example:
        """Return a document whose chain of thought has weight 0 where the recipe ignores it."""
        if self.settings.kind.analysis == "ignored":
            thought = document.channels == CHANNEL_NUMBERS["analysis"]
            document.loss_weights[thought] = 0
        return document

    def _sample(self, branches: list[Branch], at: str, report: RowCounts) -> list[Sample]:
        """Return the sample of all branches; none where it is too long, or an answer is empty."""
        if not all(any(one.loss_weights.any() for one in b.documents) for b in branches):
            self.nothing_to_train(at, report)
            return []
        documents = list(chain.from_iterable(branch.documents for branch in branches))
        tokens, limit = sum(len(one.input_ids) for one in documents), self.settings.max_length
        if tokens > limit:
            if self.settings.too_long == "error":
                both = "both branches of a pair have" if len(branches) > 1 else "an answer has"
                raise DataError(
                    f"{at}: {both} {tokens:,} tokens with the prompt, over data.max_length "
                    f"{limit:,}; raise it, shorten the row, or set data.too_long to drop"
                )
            self.drop(at, report, tokens)
            return []
        repeated = branches[0].prompt * (len(branches) - 1)
        report.counts["repeated_tokens"] += repeated
        sample = Sample(
            laid_end_to_end(documents),
            repeated,
            tuple(len(one.input_ids) for one in documents),
            tuple(b.sign for b in branches for _ in b.documents),
            branches[0].prompt,
        )
        return [sample]


def _before(document: Example) -> int:
    """Return how many tokens of a document stand before the first that counts."""
    return int((document.loss_weights != 0).argmax())


def laid_end_to_end(documents: list[Example]) -> Example:
    """Return several documents as one, one after the other."""
    spans: list[Span] = []
    start = 0
    for one in documents:
        spans += [
            span._replace(start=span.start + start, body=span.body + start, end=span.end + start)
            for span in one.spans
        ]
        start += len(one.input_ids)
    return Example(
        np.concatenate([one.input_ids for one in documents]),
        np.concatenate([one.loss_weights for one in documents]),
        np.concatenate([one.channels for one in documents]),
        tuple(spans),
        documents[0].source,
    )


def _note_pair(pair: Preference, at: str, report: RowCounts) -> bool:
    """Count what a pair teaches beside its preference; say whether it teaches none at all."""
    if pair.tie or pair.equal:
        report.count_at("ties" if pair.tie else "equal_answers", at)
        return True
    for name, holds in (
        ("differ_in_length", pair.differs_in_length_only),
        ("lost_analysis", pair.lost_analysis),
    ):
        if holds:
            report.count_at(name, at)
    return False
