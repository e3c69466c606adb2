"""The recipe's ``method`` section: how the rows become a loss.

One class a method, told apart by ``name``. A second one makes ``MethodSection`` a union of both
with ``Field(discriminator="name")``, so that each has its own settings and no other's.
"""

from __future__ import annotations

from typing import Literal

from gptoss_tune.recipe.value_types import Section


class SftSection(Section):
    """Supervised fine-tuning: the tokens of the answers, weighted by channel and message."""

    name: Literal["sft"] = "sft"
    """The method: sft is supervised fine-tuning."""


MethodSection = SftSection
"""Every method; a recipe without the section means ``sft``."""
