"""Pairs before and after training: ``RUN/pairs.json``, for the report and for a person.

The first held-out pairs (of the training data where nothing is held out) with their texts and the
log-probability of each answer: before, under the reference or the base where there is none, and
after, under the trained model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from openai_harmony import HarmonyError, Role, StreamableParser

from gptoss_tune.display import visible
from gptoss_tune.distributed import Ranks, gather_over_ranks
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.evaluate.generate import without_adapters
from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.strict_json import to_text
from gptoss_tune.harmony.conversation import CHANNELS
from gptoss_tune.harmony.dataset.kinds import kind_of
from gptoss_tune.harmony.dataset.load import row_sources
from gptoss_tune.harmony.vocabulary import Vocabulary, load_vocabulary
from gptoss_tune.model.parallel.sharding import gather_nothing, is_sharded
from gptoss_tune.recipe.schema import reference_of
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.data.collator import BATCH_ONLY
from gptoss_tune.train.preference.answers import answers_of, take
from gptoss_tune.train.preference.collator import PreferenceCollator

if TYPE_CHECKING:
    from gptoss_tune.train.context import RunContext
    from gptoss_tune.train.trainer import MethodTrainer

MOST = 24
"""Pairs that are shown."""
_SIDES = {1: "chosen", -1: "rejected"}


def write_examples(trainer: MethodTrainer, context: RunContext) -> None:
    """Write the first pairs as they were and as they are; every rank has to call it.

    A signal leaves the rest of them out.
    """
    held_out = trainer.eval_dataset is not None
    dataset: Any = trainer.eval_dataset if held_out else trainer.train_dataset
    recipe, vocabulary = context.recipe, load_vocabulary(context.base.path)
    split = "eval" if held_out else "train"
    numbers = _first_rows(dataset)
    places, said = iter(()), None
    try:
        places = iter(
            row_sources(
                recipe.data,
                numbers,
                vocabulary=vocabulary,
                seed=recipe.train.seed,
                kind=kind_of(recipe.method),
                split=split,
            )
        )
    except (GptossTuneError, IndexError) as error:
        said = f"the files are others than when the run began ({error})"
    # They may be so on one machine alone, and a spread model needs all ranks.
    wrong = [one for one in gather_over_ranks(said) if one is not None]
    if wrong:
        context.console.print(visible(f"no pairs are written: {wrong[0]}"), markup=False)
        return
    model: Any = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    training = model.training
    model.eval()
    found: list[dict[str, Any]] = []
    for number in numbers:
        if Ranks().any(context.stop.requested, device=context.device)[0]:
            break
        row = dataset[number]
        after, before = _log_probabilities(trainer, model, row)
        for pair in _samples(row, vocabulary):
            for side in pair.pop("sides"):
                pair[side] |= {"before": before.pop(0), "after": after.pop(0)}
            found.append({"source": next(places, ""), **pair})
    if is_sharded(model):
        gather_nothing(model)
    model.train(training)
    if trainer.args.should_save:
        text = to_text(
            {
                "reference": reference_of(recipe.method, recipe.lora),
                "split": split,
                "pairs": found[:MOST],
            },
            ascii_only=False,
        )
        write_text(RunFolder(context.run).pairs, text + "\n")


@torch.no_grad()
def _log_probabilities(
    trainer: MethodTrainer, model: Any, row: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """Return the summed log-probability of each answer of a row: trained, and before."""
    batch = PreferenceCollator(model.config.pad_token_id)([row])
    forward, rest = take(trainer._prepare_inputs(batch))
    forward = {name: value for name, value in forward.items() if name not in BATCH_ONLY}
    answers = answers_of(model(**forward, use_cache=False).token_losses, rest)
    after, before = answers.logps, answers.reference
    if "reference" not in row:
        with without_adapters(model):
            losses = model(**forward, use_cache=False).token_losses
        before = answers_of(losses, rest).logps
    return after.tolist(), before.tolist()


def _first_rows(dataset: Any) -> list[int]:
    """Return the numbers of the first rows that hold as many samples as are shown."""
    samples = 0
    for number, owners in enumerate(dataset["samples"]):
        samples += max(owners) + 1
        if samples >= MOST:
            return list(range(number + 1))
    return list(range(len(dataset)))


def _samples(row: dict[str, Any], vocabulary: Vocabulary) -> Iterator[dict[str, Any]]:
    """Yield the texts of each sample of a row, its ``sides`` in their order."""
    ids, weights = np.asarray(row["input_ids"]), np.asarray(row["loss_weights"])
    starts = np.flatnonzero(np.asarray(row["position_ids"]) == 0)
    ends = [*starts[1:], len(ids)]
    pairs: dict[int, dict[str, Any]] = {}
    owners = zip(row["samples"], row["branches"], strict=True)
    for (sample, sign), start, end in zip(owners, starts, ends, strict=True):
        pair, side = pairs.setdefault(sample, {"prompt": "", "sides": []}), _SIDES[sign]
        prompt, text = read_document(ids[start:end].tolist(), vocabulary)
        counted = int((weights[start + 1 : end] != 0).sum())
        if side in pair:
            counted += pair[side]["tokens"]  # turns in contexts of their own: the last one is shown
        else:
            pair["sides"].append(side)
            pair["prompt"] = prompt
        pair[side] = {"text": text, "tokens": counted}
    yield from pairs.values()


def read_document(
    token_ids: list[int], vocabulary: Vocabulary
) -> tuple[str, dict[str, str | None]]:
    """Return the last message of the user, and by channel what the assistant says after it."""
    parser = StreamableParser(vocabulary.encoding, None)
    try:
        for token in token_ids:
            parser.process(token)
    except HarmonyError:
        return "", {"final": vocabulary.decode(token_ids)}
    prompt, said = "", {}
    for message in parser.messages:
        text = "".join(getattr(part, "text", "") for part in message.content)
        if message.author.role == Role.USER:
            prompt, said = text, {}
        elif message.author.role == Role.ASSISTANT and message.channel in CHANNELS:
            said[message.channel] = "\n".join(filter(None, (said.get(message.channel), text)))
    return prompt, {channel: said.get(channel) for channel in CHANNELS}
