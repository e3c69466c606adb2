"""Which base tensors an adapter's configuration targets, and at which rank and scaling.

PEFT decides this by suffixes, patterns and regular expressions while it wraps modules. The same
rules are applied here to the names of a checkpoint, so that a merge knows what an adapter must
contain before it looks inside: a key that is missing, or that nothing would read, is an error and
not a model that is quietly the base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter_config import ExpertChoice, expert_choice, matching
from gptoss_tune.weights.names import (
    ATTENTION_PROJECTIONS,
    EXPERT_PROJECTIONS,
    expert_key,
    expert_shape,
)

PREFIX = "base_model.model."
"""What PEFT puts before the name of a module."""


@dataclass(frozen=True)
class Target:
    """One weight of the base that an adapter changes.

    Attributes:
        module: ``model.layers.0.self_attn.q_proj`` or ``model.layers.0.mlp.experts.gate_up_proj``.
        key: What PEFT writes before ``.lora_A.weight``.
        experts: E for a stack of experts, None for a linear layer.
        features: ``(in, out)`` of the weight.
        rank: Rank of one expert or of the layer.
        scaling: What ``B A`` is multiplied by.
        chosen: Numbers of the experts that have factors, ascending; ``None``: all.
    """

    module: str
    key: str
    experts: int | None
    features: tuple[int, int]
    rank: int
    scaling: float
    chosen: tuple[int, ...] | None = None

    @property
    def held(self) -> int:
        """Experts that the file has factors of; 1 for a linear layer."""
        return (self.experts or 1) if self.chosen is None else len(self.chosen)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of A and B as they are stored: ``[E*r, in]`` and ``[out, r*E]``, E those held."""
        rows = self.rank * self.held
        return (rows, self.features[0]), (self.features[1], rows)


def targets_of(config: Mapping[str, Any], base: Checkpoint, where: str) -> dict[str, Target]:
    """Return every target of ``adapter_config.json`` on ``base``, by module.

    Args:
        config: The adapter's configuration.
        base: The checkpoint it adapts.
        where: The configuration's file, for messages.

    Raises:
        CheckpointError: Nothing is targeted, or something that cannot be merged.
    """
    layers = range(base.config["num_hidden_layers"])
    names = (
        "model.embed_tokens",
        "lm_head",
        *(f"model.layers.{i}.mlp.router" for i in layers),
        *(f"model.layers.{i}.self_attn.{name}" for i in layers for name in ATTENTION_PROJECTIONS),
        *(expert_key(i, name) for i in layers for name in EXPERT_PROJECTIONS),
    )
    _refuse_other_parameters(config, base, where)
    rules = _Rules(config, names, where)
    choice = expert_choice(config, len(layers), base.config["num_local_experts"], where)
    targets = [*_linear_targets(rules, base), *_expert_targets(rules, base, choice)]
    if not targets:
        raise CheckpointError(
            f"{where}: target_modules {config.get('target_modules')} and target_parameters "
            f"{config.get('target_parameters')} match nothing in {base.path}; it is an adapter of "
            "another architecture"
        )
    return {target.module: target for target in targets}


@dataclass(frozen=True)
class _Rules:
    """PEFT's rules for one configuration.

    Attributes:
        config: The adapter's configuration.
        names: Every module that a pattern may be asked about.
        where: The configuration's file.
    """

    config: Mapping[str, Any]
    names: tuple[str, ...]
    where: str

    def selects(self, module: str) -> bool:
        """Return whether ``target_modules`` selects ``module``."""
        wanted = self.config.get("target_modules") or []
        excluded = self.config.get("exclude_modules") or []
        if isinstance(excluded, str):
            out = module in self._matching("fullmatch", excluded, "exclude_modules")
        else:
            out = _ends_with(module, excluded)
        if out:
            return False
        if isinstance(wanted, str):
            return module in self._matching("fullmatch", wanted, "target_modules")
        return _ends_with(module, wanted) and self._in_layers(module)

    def rank(self, module: str) -> tuple[int, float]:
        """Return rank and scaling of ``module`` from the configuration and its patterns."""
        rank = self._pattern("rank_pattern", module, self.config["r"])
        alpha = self._pattern("alpha_pattern", module, self.config["lora_alpha"])
        divisor = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return int(rank), alpha / divisor

    def _matching(
        self, how: Literal["ends", "fullmatch"], pattern: str, option: str
    ) -> frozenset[str]:
        return matching(how, pattern, self.names, f"{self.where}: {option}")

    def _pattern(self, option: str, module: str, default: float) -> float:
        """Return the value of the first pattern that matches the end of ``module``."""
        for pattern, value in (self.config.get(option) or {}).items():
            if module in self._matching("ends", pattern, option):
                return value
        return default

    def _in_layers(self, module: str) -> bool:
        """Return whether ``layers_to_transform`` allows ``module``."""
        layers = self.config.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.config.get("layers_pattern") or [r"[^.]*"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        matches = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        layer = next((int(match[1]) for match in matches if match), None)
        return layer in ([layers] if isinstance(layers, int) else layers)


def _linear_targets(rules: _Rules, base: Checkpoint) -> Iterable[Target]:
    """Yield the linear layers that ``target_modules`` matches."""
    layers = base.config["num_hidden_layers"]
    attention = [
        f"model.layers.{i}.self_attn.{name}"
        for i in range(layers)
        for name in ATTENTION_PROJECTIONS
    ]
    refused = ["model.embed_tokens", *(f"model.layers.{i}.mlp.router" for i in range(layers))]
    for module in [*refused, *attention, "lm_head"]:
        if not rules.selects(module):
            continue
        if module in refused:
            raise CheckpointError(
                f"{rules.where}: targets '{module}', which cannot be merged; expected attention "
                "projections, lm_head and experts"
            )
        weight = f"{module}.weight"
        out, into = base.shape(weight)
        yield Target(module, PREFIX + module, None, (into, out), *rules.rank(module))


def _refuse_other_parameters(config: Mapping[str, Any], base: Checkpoint, where: str) -> None:
    """Refuse ``target_parameters`` that PEFT finds in gpt-oss and that are no stack of experts."""
    parameters = [name.removesuffix("_blocks") for name in base.names()]
    for entry in config.get("target_parameters") or []:
        matched = [name for name in parameters if _ends_with(name, [entry])]
        others = [name for name in matched if not name.endswith(EXPERT_PROJECTIONS)]
        if others:
            raise CheckpointError(
                f"{where}: target_parameters names {entry[:60]!a}, which is {others[0]} and the "
                f"like; merged are the experts alone ({' and '.join(EXPERT_PROJECTIONS)}), train "
                "without it or merge with PEFT"
            )


def _expert_targets(
    rules: _Rules, base: Checkpoint, choice: ExpertChoice | None
) -> Iterable[Target]:
    """Yield the expert stacks that ``target_parameters`` matches, with the ``choice`` of experts.

    PEFT wraps parameters in the order of the module, gate_up_proj first; the second wraps the
    first, whose factors then carry ``base_layer`` in their names.
    """
    for layer in range(base.config["num_hidden_layers"]):
        keys = [expert_key(layer, projection) for projection in EXPERT_PROJECTIONS]
        matched = [
            (key, projection)
            for key, projection in zip(keys, EXPERT_PROJECTIONS, strict=True)
            if _ends_with(key, rules.config.get("target_parameters") or [])
        ]
        for depth, (key, projection) in enumerate(reversed(matched)):
            experts, into, out = expert_shape(base.config, projection)
            wrapper = f"{PREFIX}model.layers.{layer}.mlp.experts" + ".base_layer" * depth
            chosen = None if choice is None else choice.get(layer)
            yield Target(key, wrapper, experts, (into, out), *rules.rank(key), chosen)


def _ends_with(name: str, suffixes: Iterable[str]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
