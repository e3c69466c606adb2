"""Preference rows that are shown and counted, and the commands that do so."""

from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.harmony.dataset.kinds import SampleKind
from gptoss_tune.harmony.dataset.pair_statistics import LabelWeights
from gptoss_tune.harmony.dataset.statistics import data_statistics
from gptoss_tune.recipe import DataSection

PAIRS, LABELS = SampleKind("pair"), SampleKind("label")


def answer(content, thinking=None):
    told = {"thinking": thinking} if thinking else {}
    return [{"role": "assistant", "content": content, **told}]


def pair(prompt, chosen, rejected, **beside):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **beside}


def label(prompt, completion, good):
    return {"prompt": prompt, "completion": completion, "label": good}


LOST = pair("What is 17 * 3?", answer("51"), answer("It is 52.", "Guess."))
EQUAL = pair("Same?", answer("yes"), answer("yes"))
LONG = pair("Write.", answer("word " * 400), answer("no"))
HEAVY = pair("7 * 8?", answer("56", "Seven eights."), answer("54", "Nearly."), weight=2)
TURNS = pair(
    "Weather in Oslo?",
    [*answer("3 degrees.", "Cold."), {"role": "user", "content": "Rome?"}, *answer("24.", "Warm.")],
    [*answer("Who knows.", "Hm."), {"role": "user", "content": "Rome?"}, *answer("Hot.", "Hm.")],
)
ROWS = [LOST, EQUAL, LONG, HEAVY, TURNS]


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


def census_of(vocabulary, rows, write_jsonl, kind=PAIRS, weights=None, **settings):
    data = DataSection.model_validate({"train": write_jsonl(rows), "max_length": 512, **settings})
    return data_statistics(
        data, vocabulary, seed=0, kind=kind, weights=weights or LabelWeights(1.0, 1.0)
    )
