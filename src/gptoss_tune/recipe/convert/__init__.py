"""Configurations of other tools -> a recipe: Axolotl, LLaMA-Factory, TRL; no torch.

``convert`` knows a file by its keys and gives the recipe's text and, for every key of the file,
what became of it: converted, without a counterpart, or irrelevant here. ``draft`` holds the two
while they grow, ``draft_rules`` the small rules, ``trainer`` what all three tools call alike;
``axolotl``, ``llamafactory`` and ``trl`` with their ``..._data`` are the tools' own words.
"""

from gptoss_tune.recipe.convert.convert import Conversion, Options, convert
from gptoss_tune.recipe.convert.draft import Outcome

__all__ = ["Conversion", "Options", "Outcome", "convert"]
