"""Models in process: base, base with adapter, merged folder, asked in batches.

A base and the runs tuned on it share one set of weights: the base is the same model with its
adapter left out, so a comparison needs the memory of one model. What a run alone needs is prepared
once, as for a conversation (``load_answering_model``), with the same values.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from gptoss_tune.benchmark.subjects.subject import Asking, Reply
from gptoss_tune.evaluate.generate import (
    Sampling,
    answer_batches,
    evaluating,
    is_adapted,
    without_adapters,
)
from gptoss_tune.evaluate.load import EvaluatedModel, load_answering_model, load_evaluated_model
from gptoss_tune.evaluate.memory import telling_what_helps
from gptoss_tune.evaluate.parse import read_answer
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.recipe import ModelSection
from gptoss_tune.run.record import trained_merge_aware


class Weights:
    """The weights of one model, loaded when they are first asked and freed after the last.

    Attributes:
        opened: What is loaded.
        section: How it is held.
    """

    def __init__(self, opened: EvaluatedModel, section: ModelSection, device: torch.device) -> None:
        """Load nothing yet."""
        self.opened, self.section = opened, section
        self._device = device
        self._shared_with_base = False
        self._users = 0
        self._model: Any = None

    def join(self, *, base: bool) -> None:
        """Count a subject that will ask; ``base``: it asks without the adapter."""
        self._users += 1
        self._shared_with_base |= base and self.opened.adapter is not None

    def leave(self) -> None:
        """Count a subject that is done; the last one frees the memory."""
        self._users -= 1
        if self._users <= 0:
            self._model = None
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def model(self) -> Any:
        """Return the loaded model.

        Raises:
            MachineError: It does not fit, or a backend cannot run here.
        """
        if self._model is None:
            load = load_evaluated_model if self._shared_with_base else load_answering_model
            with telling_what_helps():
                self._model = load(self.opened, self.section, self._device)
        return self._model


class InProcess:
    """A model of this process, or its base.

    Attributes:
        name: What the table calls it.
        weights: Maybe shared with other subjects, which are best asked next to each other.
        protocol: How it is asked, for people.
    """

    protocol = "in process, token ids"

    def __init__(
        self,
        name: str,
        weights: Weights,
        vocabulary: Vocabulary,
        *,
        base: bool = False,
        batch_size: int = 8,
    ) -> None:
        """Ask ``weights``, without their adapter where it is the ``base``."""
        self.name = name
        self.weights, self._vocabulary, self._base = weights, vocabulary, base
        self._batch_size = batch_size
        weights.join(base=base)

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of weights and adapter, and how they are held."""
        opened = self.weights.opened
        adapter = None if self._base else opened.adapter
        held = self.weights.section.model_dump(mode="json", exclude={"name_or_path", "revision"})
        if opened.checkpoint.expert_format != "mxfp4":
            held["experts_precision"] = "bf16"
        return {
            "kind": "in process",
            "base": opened.checkpoint.fingerprint()["content"],
            "config": opened.checkpoint.fingerprint()["config"],
            "adapter": None if adapter is None else adapter.digest,
            "merge_aware": adapter is not None and trained_merge_aware(adapter.path),
            "held": held,
        }

    def ask(self, questions: Sequence[Question], asking: Asking) -> Iterator[tuple[int, Reply]]:
        """Yield the answers of each batch, those of the longest prompts first."""
        model = self.weights.model()
        sampling = Sampling(asking.max_new_tokens, asking.temperature, asking.top_p, asking.seed)
        prompts = [question.prompt_ids for question in questions]
        bare = without_adapters(model) if self._base and is_adapted(model) else nullcontext()
        with evaluating(model), bare, telling_what_helps():
            for number, ids in answer_batches(model, prompts, sampling, self._batch_size):
                given = read_answer(ids, self._vocabulary.encoding)
                yield number, Reply(given, len(given.token_ids), given.analysis_tokens)

    def close(self) -> None:
        """Give the weights back, unless another subject is asked with them."""
        self.weights.leave()
