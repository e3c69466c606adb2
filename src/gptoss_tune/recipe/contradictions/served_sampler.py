"""Rules of ``method.sampler: server``: where it is, and what it can compute as training does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptoss_tune.recipe.contradictions.contradiction import Contradiction
from gptoss_tune.recipe.schema.grpo import GrpoSection

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import LoraSection, MethodSection, ModelSection

_SAMPLER = "method.sampler"
_PLACES = {
    "server_url": "the address of the server, for example http://localhost:8000/v1",
    "server_folder": "a folder that this machine and the server reach by the same path",
}


def served_sampler_rules(
    method: MethodSection, lora: LoraSection, model: ModelSection
) -> Iterator[Contradiction]:
    """Yield what contradicts itself in a recipe whose episodes a server samples."""
    if not isinstance(method, GrpoSection):
        return
    served = method.sampler == "server"
    for name, what in _PLACES.items():
        value = getattr(method, name)
        if served and value is None:
            yield Contradiction(
                (f"method.{name}", _SAMPLER),
                f"none with {_SAMPLER} server",
                what,
                f"set method.{name}, or {_SAMPLER} to own or batched",
            )
        elif not served and value is not None:
            yield Contradiction(
                (f"method.{name}", _SAMPLER),
                f"'{value}' with {_SAMPLER} {method.sampler}",
                f"none: {method.sampler} samples in this process",
                f"remove method.{name}, or set {_SAMPLER} to server",
                yields=(f"method.{name}",),
            )
    if served:
        yield from _weights_rules(lora, model)


def _weights_rules(lora: LoraSection, model: ModelSection) -> Iterator[Contradiction]:
    """Yield what the server would compute with other weights than training does, or not at all."""
    for name in ("linear_precision", "head_precision"):
        value = getattr(model, name)
        if value != "bf16":
            yield Contradiction(
                (f"model.{name}", _SAMPLER),
                f"{value} with {_SAMPLER} server",
                "bf16: the server holds the released weights, and training would hold others",
                f"remove model.{name}, or set {_SAMPLER} to own or batched",
                yields=(f"model.{name}",),
            )
    if not lora.merge_aware and len(lora.target_parameters) == 1:
        (only,) = lora.target_parameters
        yield Contradiction(
            ("lora.target_parameters", _SAMPLER),
            f"{only} alone with {_SAMPLER} server",
            "both expert projections or none: vLLM reads adapters of both",
            "set lora.target_parameters to [gate_up_proj, down_proj] or []",
        )
