"""What rows for a policy classifier show of a wrong habit: no policy, no label, one label for all.

Told of rows that name a ``policy`` or the grader of that name. Whether the label is the right one
under the policy nobody can tell here; that the answer has one, and the one that the row names, is
certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.policy_label import label_in

FEWEST_ROWS: Final = 10
"""Rows of a policy from which on one label for all of them is told."""


def note_policy(conversation: Conversation) -> None:
    """Count what a row for a classifier lacks, and its label."""
    judged, notes = conversation.judged, conversation.notes
    if judged is None:
        return
    if not (conversation.instructions or "").strip():
        notes.warnings[
            "a row names a policy, and no system message holds its text: the model learns to judge "
            "without one; add the policy as the system message, as the served model gets it"
        ] += 1
    finals = [message.text for message in conversation.messages if message.is_final]
    if not finals:
        return
    # A column of that name may be the answer itself.
    if judged.unread is not None and judged.unread.strip() != finals[-1].strip():
        notes.warnings[
            "the row's key answer is no label of its grader, so an evaluation refuses the row and "
            f"nobody compares the two; write {' or '.join(judged.form.labels)} there, or name the "
            "row's labels in its grader"
        ] += 1
    label, _ = label_in(finals[-1], judged.form)
    if label is None:
        notes.warnings[
            "the answer holds no label that the grader policy reads; answer with "
            f"{' or '.join(judged.form.labels)}, or with a JSON object that has it under "
            f"{judged.form.field!r}, or name the row's labels in its grader"
        ] += 1
        return
    if judged.label is not None and label != judged.label:
        notes.warnings[
            "the label of the answer is another than the row's key answer says; correct one of the "
            "two"
        ] += 1
    notes.label = (judged.policy, label)


def one_label(labels: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Yield a sentence for each policy whose rows all have the same label.

    Args:
        labels: How often each label was seen, by policy.
    """
    for policy, counts in labels.items():
        rows = sum(counts.values())
        if rows >= FEWEST_ROWS and len(counts) == 1:
            of = f" of the policy {policy!r}" if policy else ""
            yield (
                f"all {rows:,} rows{of} have the label {next(iter(counts))!r}: the model learns to "
                "answer it whatever is asked; add rows with the other label"
            )
