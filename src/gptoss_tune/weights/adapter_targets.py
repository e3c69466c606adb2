"""Which base tensors an adapter's configuration targets, and at which rank and scaling.

PEFT decides this by suffixes, patterns and regular expressions while it wraps modules. The same
rules are applied here to the names of a checkpoint, so that a merge knows what an adapter must
contain before it looks inside: a key that is missing, or that nothing would read, is an error and
not a model that is quietly the base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter_config import ExpertChoice, expert_choice, matching
from gptoss_tune.weights.adapter_keys import PREFIX
from gptoss_tune.weights.adapters.kinds import MERGE_WITH_PEFT
from gptoss_tune.weights.adapters.single_experts import (
    SingleExpert,
    common_scaling,
    stacked_rank,
    stacks_of,
)
from gptoss_tune.weights.names import (
    ATTENTION_PROJECTIONS,
    EXPERT_PROJECTIONS,
    expert_key,
    expert_shape,
)


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
        dora: Whether each row of the changed weight is scaled to a trained length (DoRA).
        singles: The layers of single experts that have the factors; empty: the stack has.
        embedding: Whether the factors are of an embedding, which PEFT stores the other way round:
            A ``[r, V]`` with a column for each row of the weight, B ``[H, r]``.
    """

    module: str
    key: str
    experts: int | None
    features: tuple[int, int]
    rank: int
    scaling: float
    chosen: tuple[int, ...] | None = None
    dora: bool = False
    singles: tuple[SingleExpert, ...] = ()
    embedding: bool = False

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its tensors in the file, as PEFT saves them."""
        (into, out), (a, b) = self.features, self.letters
        found: dict[str, tuple[int, ...]] = {}
        for one in self.singles:
            rows = out if one.part == "whole" else out // 2
            found |= {f"{PREFIX}{one.module}.{a}": (one.rank, into)}
            found |= {f"{PREFIX}{one.module}.{b}": (rows, one.rank)}
        if self.embedding:
            found |= {f"{self.key}.{a}": (self.rank, out), f"{self.key}.{b}": (into, self.rank)}
        elif not self.singles:
            found |= {f"{self.key}.{a}": self.shapes[0], f"{self.key}.{b}": self.shapes[1]}
        return found | ({self.magnitude: (out,)} if self.dora else {})

    @property
    def letters(self) -> tuple[str, str]:
        """What follows the module's name in those of its two factors."""
        if self.embedding:
            return "lora_embedding_A", "lora_embedding_B"
        return "lora_A.weight", "lora_B.weight"

    @property
    def magnitude(self) -> str:
        """Name of the lengths of the rows, as PEFT saves them."""
        return f"{self.key}.lora_magnitude_vector"

    @property
    def held(self) -> int:
        """Experts that the file has factors of; 1 for a linear layer."""
        return (self.experts or 1) if self.chosen is None else len(self.chosen)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of A and B as they are stored: ``[E*r, in]`` and ``[out, r*E]``, E those held."""
        rows = self.rank * self.held
        return (rows, self.features[0]), (self.features[1], rows)


def targets_of(
    config: Mapping[str, Any], base: Checkpoint, where: str, singles: Sequence[str] = ()
) -> dict[str, Target]:
    """Return every target of ``adapter_config.json`` on ``base``, by module.

    Args:
        config: The adapter's configuration.
        base: The checkpoint it adapts.
        where: The configuration's file, for messages.
        singles: Modules of single experts that the weights' file has factors of.

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
    names = (*names, *(f"{name}.weight" for name in names), *singles)
    rules = _Rules(config, names, where)
    choice = expert_choice(config, len(layers), base.config["num_local_experts"], where)
    targets = [
        *_linear_targets(rules, base),
        *_parameter_targets(rules, base),
        *_expert_targets(rules, base, choice),
        *_single_targets(rules, base, singles),
    ]
    _refuse_twice(targets, where)
    if config.get("use_dora") and any(target.experts for target in targets):
        raise CheckpointError(
            f"{where}: use_dora with factors of experts: PEFT has no DoRA for target_parameters, "
            "and of experts laid out one by one nothing but the program that trained them has it; "
            "merge it there and use the result as a base"
        )
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
        """Return whether ``target_modules`` selects ``module``; what is saved whole, never."""
        wanted = self.config.get("target_modules") or []
        excluded = self.config.get("exclude_modules") or []
        if any(f".{saved}." in f".{module}." for saved in self.config.get("modules_to_save") or []):
            return False
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
        rank = self._patterns["rank_pattern"].get(module) or self.config["r"]
        alpha = self._patterns["alpha_pattern"].get(module) or self.config["lora_alpha"]
        divisor = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return int(rank), alpha / divisor

    def _matching(
        self, how: Literal["ends", "fullmatch"], pattern: str, option: str
    ) -> frozenset[str]:
        return matching(how, pattern, self.names, f"{self.where}: {option}")

    @cached_property
    def _patterns(self) -> dict[str, dict[str, float]]:
        """The value of the first pattern that matches the end of a name, by option and name."""
        found: dict[str, dict[str, float]] = {}
        for option in ("rank_pattern", "alpha_pattern"):
            values: dict[str, float] = {}
            found[option] = values
            for pattern, value in (self.config.get(option) or {}).items():
                for name in self._matching("ends", pattern, option):
                    values.setdefault(name, value)
        return found

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
    routers = [f"model.layers.{i}.mlp.router" for i in range(layers)]
    dora, where = bool(rules.config.get("use_dora")), rules.where
    for module in ["model.embed_tokens", *routers, *attention, "lm_head"]:
        if not rules.selects(module):
            continue
        weight, embedding = f"{module}.weight", module == "model.embed_tokens"
        if module in routers:
            raise CheckpointError(
                f"{where}: target_modules names {module}, which is no linear layer of gpt-oss and "
                "which PEFT adapts through target_parameters alone ('mlp.router.weight')"
            )
        if module in ("model.embed_tokens", "lm_head") and base.config.get("tie_word_embeddings"):
            raise CheckpointError(
                f"{where}: adapts {module}, and the base's head is its embedding: a checkpoint "
                "with tie_word_embeddings holds one change for both; merge with PEFT, set "
                "tie_word_embeddings to false and save"
            )
        if embedding and dora:
            raise CheckpointError(f"{where}: use_dora on {module}: {MERGE_WITH_PEFT}")
        out, into = base.shape(weight)
        rank, scaling = rules.rank(module)
        yield Target(
            module,
            PREFIX + module,
            None,
            (into, out),
            rank,
            scaling,
            dora=dora,
            embedding=embedding,
        )


def _parameter_targets(rules: _Rules, base: Checkpoint) -> Iterable[Target]:
    """Yield the weights of two axes that ``target_parameters`` matches, such as the router's.

    Raises:
        CheckpointError: It matches something that is neither such a weight nor a stack of experts.
    """
    parameters = [name.removesuffix("_blocks") for name in base.names()]
    for entry in rules.config.get("target_parameters") or []:
        for name in parameters:
            if not _ends_with(name, [entry]) or name.endswith(EXPERT_PROJECTIONS):
                continue
            shape = base.shape(name) if base.has(name) else ()
            if not name.endswith(".weight") or len(shape) != 2:
                raise CheckpointError(
                    f"{rules.where}: target_parameters names {entry[:60]!a}, which is {name} and "
                    "the like; merged are stacks of experts and weights of two axes, train "
                    "without it or merge with PEFT"
                )
            module = name.removesuffix(".weight")
            yield Target(module, PREFIX + module, None, (shape[1], shape[0]), *rules.rank(name))


def _single_targets(rules: _Rules, base: Checkpoint, singles: Sequence[str]) -> Iterable[Target]:
    """Yield the stacks of which the file has factors of single experts.

    Their keys are those that PEFT gives the factors of the stacks.
    """
    selected = [module for module in singles if rules.selects(module)]
    experts = base.config["num_local_experts"]
    stacks = stacks_of(selected, rules.rank, experts, rules.where)
    for stack, held in stacks.items():
        wrapper, _, projection = stack.rpartition(".")
        _, into, out = expert_shape(base.config, projection)
        outer = f"{wrapper}.{EXPERT_PROJECTIONS[1]}"
        inner = outer in stacks and outer != stack
        numbers = tuple(sorted({one.expert for one in held}))
        yield Target(
            stack,
            PREFIX + wrapper + ".base_layer" * inner,
            experts,
            (into, out),
            stacked_rank(held),
            common_scaling(held),
            None if len(numbers) == experts else numbers,
            singles=held,
        )


def _refuse_twice(targets: Sequence[Target], where: str) -> None:
    """Refuse a weight that two rules of the configuration adapt, and experts laid out both ways."""
    layouts = {bool(target.singles): target.module for target in targets if target.experts}
    if len(layouts) > 1:
        raise CheckpointError(
            f"{where}: has factors of the stack {layouts[False]} and of single experts of "
            f"{layouts[True]}; the file was put together from two adapters"
        )
    seen: set[str] = set()
    for target in targets:
        if target.module in seen:
            raise CheckpointError(
                f"{where}: target_modules and target_parameters both adapt {target.module}, one "
                f"inside the other; train one of the two, or {MERGE_WITH_PEFT}"
            )
        seen.add(target.module)


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
