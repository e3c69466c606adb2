"""Answers that were given already, by what they depend on.

The key of an answer is the subject's identity (hashes of its weights, how they are held; a server's
address and what it answers to a probe), the ids of the prompt, and how the answer is drawn. So a
changed adapter, effort, limit or row asks again what it changes and nothing else, and a run that
was killed goes on where it was. Neither grades nor findings of the format checks are kept: a
corrected grader or check, or another limit of the chain of thought, judges the same answers.

One file an answer, whole or absent, was chosen over one that grows: two benchmarks may write at a
time, and any of them may be killed at any moment.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gptoss_tune.benchmark.subjects.subject import Asking, Reply
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.evaluate.parse import Answer, Said
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.files.atomic import disk_errors, write_text
from gptoss_tune.files.digest import digest_of
from gptoss_tune.files.strict_json import read_object, to_text

_VERSION: Final = 2
"""Of what is written; another one is asked again."""


def cache_folder() -> Path:
    """Return the folder of answers: below the user's cache, ``XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gptoss-tune" / "answers"


def answer_key(identity: dict[str, Any], question: Question, asking: Asking) -> str:
    """Return what an answer is kept under: a hash of all that it depends on."""
    drawn = {} if asking.temperature == 0 else {"top_p": asking.top_p, "seed": asking.seed}
    return digest_of(
        {
            "version": _VERSION,
            "subject": identity,
            "prompt": list(question.prompt_ids),
            "max_new_tokens": asking.max_new_tokens,
            "temperature": asking.temperature,
            **drawn,
        }
    )


class AnswerCache:
    """Answers in a folder."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        """Keep answers in ``folder``; ``fresh`` reads none of those that are there."""
        self._folder, self._fresh = folder, fresh

    def get(self, key: str) -> Reply | None:
        """Return the answer under ``key``; ``None`` where there is none, or it is unreadable."""
        if self._fresh or not self._path(key).is_file():
            return None
        try:
            return _read(read_object(self._path(key)))
        except (GptossTuneError, OSError, KeyError, TypeError, ValueError):
            return None  # asked again, and written anew

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer.

        Raises:
            MachineError: The disk is full or cannot be written.
        """
        path = self._path(key)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, to_text(asdict(reply), ascii_only=False) + "\n")

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def _read(found: dict[str, Any]) -> Reply:
    answer = found["answer"]
    return Reply(
        answer=Answer(
            token_ids=tuple(answer["token_ids"]),
            messages=tuple(
                Said(one["channel"], one["recipient"], one["content"], tuple(one["token_ids"]))
                for one in answer["messages"]
            ),
            ended=answer["ended"],
            faults=tuple(map(str, answer["faults"])),
        ),
        tokens=found["tokens"],
        analysis_tokens=found["analysis_tokens"],
    )
