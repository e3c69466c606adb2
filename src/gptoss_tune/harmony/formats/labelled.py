"""TEMP"""

from typing import NamedTuple, Any
from gptoss_tune.harmony.formats.prompt import read_completion


class Labelled(NamedTuple):
    conversation: Any
    desirable: bool


def read_labelled(row, source, *, reading):
    row = dict(row)
    label = row.pop("label")
    return Labelled(read_completion(row, source, reading=reading), label)
