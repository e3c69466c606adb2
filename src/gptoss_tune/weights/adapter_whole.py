"""Tensors of the base that an adapter holds whole, or rows or sums of: what is no factor.

PEFT saves trained modules beside the factors (``modules_to_save``: the head, the embedding, norms,
routers), single rows of the embedding (``trainable_token_indices``), a bias on B (``lora_bias``),
and, when it thinks that the vocabulary changed, head and embedding themselves. On loading, each of
them takes the place of the base's tensor, or is added to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter_keys import PREFIX
from gptoss_tune.weights.adapters.kinds import MERGE_WITH_PEFT

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TOKENS = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class Whole:
    """What an adapter does to one tensor of the base other than by factors.

    Attributes:
        kind: ``replace``: the tensor is the adapter's; ``rows``: some rows are; ``add``: it is
            added, times ``scaling``.
        stored: Its name among the adapter's tensors.
        rows: Which rows are replaced, ascending or not, as the adapter stores them.
        scaling: Of ``add``.
    """

    kind: Literal["replace", "rows", "add"]
    stored: str
    rows: tuple[int, ...] = ()
    scaling: float = 1.0


def whole_tensors(
    config: Mapping[str, Any],
    base: Checkpoint,
    held: Collection[str],
    scalings: Mapping[str, float],
    where: str,
) -> dict[str, Whole]:
    """Return what the adapter does to tensors of the base other than by factors, by their names.

    Args:
        config: ``adapter_config.json``.
        base: The checkpoint it adapts.
        held: Names of the adapter's tensors, as PEFT saves them.
        scalings: Scaling of the linear targets, by module.
        where: The weights' file, for messages.

    Raises:
        CheckpointError: A module that no merge can replace, or one that the file lacks; token rows
            that are none; two rules for one tensor.
    """
    found = _saved_modules(config, base, held, where)
    for name, tokens in _token_rows(config, where).items():
        _refuse_twice(name, found, where)
        found[name] = _rows(name, tokens, base, held, where)
    if config.get("lora_bias"):
        for module, scaling in scalings.items():
            found |= _bias(module, scaling, base, held, where)
    for name in (EMBEDDING, HEAD):  # as PEFT saves them where it thinks that they were resized
        if PREFIX + name in held and base.has(name) and name not in found:
            found[name] = Whole("replace", PREFIX + name)
    _refuse_untied(config, base, found, where)
    both = [
        n for n, w in found.items() if w.kind != "add" and n.removesuffix(".weight") in scalings
    ]
    if both:
        raise CheckpointError(
            f"{where}: holds trained values of {both[0]} and factors for it; which of them acts on "
            f"the other is PEFT's to say: {MERGE_WITH_PEFT}"
        )
    return found


def _saved_modules(
    config: Mapping[str, Any], base: Checkpoint, held: Collection[str], where: str
) -> dict[str, Whole]:
    """Return the tensors of ``modules_to_save``; PEFT takes every module whose name ends so."""
    found: dict[str, Whole] = {}
    modules = set(_modules(base))
    for wanted in config.get("modules_to_save") or []:
        matched = sorted(module for module in modules if module.endswith(wanted))
        if not matched:
            raise CheckpointError(
                f"{where}: modules_to_save names {wanted[:60]!a}, which gpt-oss has no module of; "
                "it was trained on a model with another head, which no checkpoint of gpt-oss holds"
            )
        for module in matched:
            names = [name for name in base.names() if name.startswith(f"{module}.")]
            if any(".experts." in name for name in names):
                raise CheckpointError(
                    f"{where}: modules_to_save names {wanted[:60]!a}, which is {module} with "
                    f"whole stacks of experts: these are trained anew and no change; "
                    f"{MERGE_WITH_PEFT}"
                )
            found |= {name: Whole("replace", PREFIX + name) for name in names}
    # A tied head has no tensor of its own in the base, and follows the embedding.
    missing = [name for name, whole in found.items() if whole.stored not in held]
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} of {len(found)} tensors that modules_to_save promises are "
            f"missing, first '{PREFIX + missing[0]}'; the adapter was saved incompletely, save it "
            "again"
        )
    return found


def _modules(base: Checkpoint) -> Iterable[str]:
    """Yield the names of all modules that hold tensors of the base, inner and outer."""
    for name in base.names():
        parts = name.split(".")[:-1]
        yield from (".".join(parts[: n + 1]) for n in range(len(parts)))
    if base.config.get("tie_word_embeddings"):
        yield "lm_head"


def _token_rows(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Return ``trainable_token_indices`` by tensor; a list alone is of the embedding."""
    told = config.get("trainable_token_indices") or {}
    told = {"embed_tokens": told} if isinstance(told, list) else told
    tensors = {"embed_tokens": EMBEDDING, "lm_head": HEAD}
    found = {}
    for module, rows in told.items():
        name = tensors.get(str(module).rpartition(".")[2])
        plain = isinstance(rows, list) and all(type(row) is int for row in rows)
        if name is None or not plain or len(set(rows)) != len(rows) or not rows:
            raise CheckpointError(
                f"{where}: trainable_token_indices of {str(module)[:60]!a} is "
                f"{ascii(rows)[:60]}; expected numbers of tokens of embed_tokens or lm_head"
            )
        found[name] = tuple(rows)
    return found


def _rows(
    name: str, tokens: tuple[int, ...], base: Checkpoint, held: Collection[str], where: str
) -> Whole:
    """Return the replaced rows of one tensor."""
    stored = PREFIX + name.removesuffix(".weight") + _TOKENS
    if stored not in held:
        raise CheckpointError(
            f"{where}: '{stored}' is missing, which trainable_token_indices promises; the adapter "
            "was saved incompletely, save it again"
        )
    if not base.has(name) or min(tokens) < 0 or max(tokens) >= base.shape(name)[0]:
        raise CheckpointError(
            f"{where}: trainable_token_indices has {len(tokens)} rows of {name} up to "
            f"{max(tokens)}; the base has {base.shape(name)[0] if base.has(name) else 'none'}: the "
            f"embedding was resized, {MERGE_WITH_PEFT}"
        )
    return Whole("rows", stored, tokens)


def _bias(
    module: str, scaling: float, base: Checkpoint, held: Collection[str], where: str
) -> dict[str, Whole]:
    """Return the sum of a layer's bias and the bias on its B."""
    stored, name = f"{PREFIX}{module}.lora_B.bias", f"{module}.bias"
    if stored not in held or not base.has(name):
        lacks = "the file has none" if stored not in held else "the base's layer has none"
        raise CheckpointError(
            f"{where}: lora_bias promises a bias on B of {module}, and {lacks}; save the adapter "
            "again"
        )
    return {name: Whole("add", stored, scaling=scaling)}


def _refuse_twice(name: str, found: Mapping[str, Whole], where: str) -> None:
    if name in found:
        raise CheckpointError(
            f"{where}: modules_to_save and trainable_token_indices both name {name}; PEFT trains "
            "one of the two, save the adapter with that alone"
        )


def _refuse_untied(
    config: Mapping[str, Any], base: Checkpoint, found: Mapping[str, Whole], where: str
) -> None:
    """Refuse a new embedding for a base whose head is the embedding, unless the head follows it."""
    if not base.config.get("tie_word_embeddings") or EMBEDDING not in found:
        return
    if not config.get("ensure_weight_tying"):
        raise CheckpointError(
            f"{where}: holds a trained embedding, and the base's head is its embedding, which the "
            "training left as it was (ensure_weight_tying is off); a checkpoint with "
            "tie_word_embeddings cannot hold both: merge with PEFT, set tie_word_embeddings to "
            "false and save"
        )


def refuse_other_shapes(
    found: Mapping[str, Whole],
    shapes: Mapping[str, tuple[int, ...]],
    base: Checkpoint,
    where: str,
) -> None:
    """Refuse tensors of another shape than the base's.

    Args:
        found: From ``whole_tensors``.
        shapes: Of the adapter's tensors.
        base: The checkpoint it adapts.
        where: The weights' file, for messages.

    Raises:
        CheckpointError: Also where the vocabulary was resized.
    """
    for name, whole in found.items():
        shape, wanted = shapes[whole.stored], base.shape(name)
        if whole.kind == "rows":
            wanted = (len(whole.rows), *wanted[1:])
        if shape == wanted:
            continue
        if name in (EMBEDDING, HEAD) and shape[1:] == wanted[1:] and whole.kind == "replace":
            raise CheckpointError(
                f"{where}: '{whole.stored}' has {shape[0]} rows, the base's vocabulary "
                f"{wanted[0]}: the embeddings were resized, and tokenizer and config.json of the "
                f"base do not know the new tokens; resize the base's too "
                f"(resize_token_embeddings({shape[0]})), then {MERGE_WITH_PEFT}"
            )
        raise CheckpointError(
            f"{where}: '{whole.stored}' is {list(shape)}, expected {list(wanted)}; the adapter is "
            "of another base"
        )
