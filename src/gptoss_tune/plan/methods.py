"""What a method of training adds to a plan, beside a step of supervised fine-tuning.

``train/methods.py`` says what a method trains with; this table, by the same names, imports no
torch. Both are read by ``method.name`` of a recipe; what a method measures against (its
``reference``) decides the rest.

A preference is trained in one forward and backward pass, as a conversation is. Beside it stand:

- the reference's log-probability of every token, once for the whole run: a forward pass over the
  training and the held-out data by the same model, so there is no second one;
- the head walked a second time in each step, since how much an answer counts hangs on the
  log-probabilities of all its tokens;
- for ``kto`` the answers of other prompts, about as many tokens again, which are not trained: a
  forward pass over them in each step and each evaluation, and in the reference's pass too.

Reinforcement trains what the model itself has sampled: ``plan/rollout/`` says what playing costs.
A step adds a forward pass where a reference holds the model, and one where a phase plays for
several steps, since ratios are taken to the weights that drew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptoss_tune.recipe.schema import LoraSection, MethodSection, reference_of

# Bytes of a token: the number of its answer, and a place in the list of that answer's tokens
# (int64); in fp32 the reference's log-probability (0 where there is none), the loss of the first
# walk and the signed weight of the second.
_OF_ANSWERS = 2 * 8 + 3 * 4
# Of a token that only KTO's KL term reads: id, target, position and the same two numbers (int64),
# and in fp32 its weight, the reference's log-probability and its loss.
_MISMATCHED = 5 * 8 + 3 * 4
# Of a token of an episode, in fp32: its advantage, the sampler's log-probability, its entropy.
_OF_EPISODES = 3 * 4


@dataclass(frozen=True)
class Added:
    """What comes on top of one forward and one backward pass with the adapters.

    A method that compares each token with a second model of the base's size in each step, and keeps
    one fp32 probability of it: ``Added(forward_passes=1, base_copies=1, bytes_per_token=4)``.

    Attributes:
        forward_passes: Over as many tokens as are trained, with no gradient; in an evaluation too.
        head_passes: Further products with the head for each trained token, with no gradient.
        reference_passes: Over the training and the held-out data, with no gradient, once for the
            run.
        base_copies: Further models with the base's sizes, held as the base is.
        bytes_per_token: Kept through a step, for each token of a micro-batch.
        branches: Answers of a row of the data, each of which is read after its prompt.
    """

    forward_passes: int = 0
    head_passes: int = 0
    reference_passes: int = 0
    base_copies: int = 0
    bytes_per_token: int = 0
    branches: int = 1


_WITHOUT = Added(head_passes=1, bytes_per_token=_OF_ANSWERS, branches=2)
_WITH_REFERENCE = replace(_WITHOUT, reference_passes=1)

METHODS = {
    "sft": Added(),
    "dpo": _WITH_REFERENCE,
    "ipo": _WITH_REFERENCE,
    "simpo": _WITHOUT,
    "orpo": _WITHOUT,
    "kto": replace(
        _WITH_REFERENCE,
        forward_passes=1,
        reference_passes=2,
        bytes_per_token=_OF_ANSWERS + _MISMATCHED,
        branches=1,
    ),
    "grpo": Added(bytes_per_token=_OF_EPISODES),
}
"""Every method by its name in a recipe, with the reference that it has by default."""


def added(method: MethodSection, lora: LoraSection, choices: int = 0) -> Added:
    """Return what ``method`` adds with its settings.

    Args:
        method: How rows become a loss.
        lora: Says what the reference is, where the method does not.
        choices: Experts that a token chooses, over all layers: a byte each where they are replayed.
    """
    found = METHODS[method.name]
    if method.name == "grpo":
        # Both are computed once for the rows of a step, and kept as an fp32 value of each token.
        passes = (reference_of(method, lora) != "none") + (method.updates > 1)
        kept = 4 * passes + (choices if method.replay_routing else 0)
        return replace(
            found,
            forward_passes=passes,
            bytes_per_token=found.bytes_per_token + kept,
        )
    if reference_of(method, lora) == "none":
        return replace(found, reference_passes=0)
    return found
