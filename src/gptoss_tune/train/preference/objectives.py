"""The objectives of preference tuning, as their papers write them; gradients are autograd's.

Each is a function of the answers' summed log-probabilities alone, so its gradient with respect to
them is all that a backward pass through the model needs (``loss.py``). Everything is fp64: there
are a few numbers for each answer.

With c the chosen and r the rejected answer, logp the summed log-probability of the counted tokens,
n their number, sigma the logistic function::

    m      (logp_c - ref_c) - (logp_r - ref_r); per token with length_normalized
    dpo    -(1 - e) log sigma(beta m) - e log sigma(-beta m)                  + sft
    ipo    (m - 1 / (2 beta))^2                                               + sft
    simpo  the same as dpo of z = beta (logp_c/n_c - logp_r/n_r) - gamma      + sft
    orpo   -logp_c/n_c - beta log sigma(logit p_c - logit p_r), p = exp(logp/n)
    kto    w_good (1 - sigma(beta (logp - ref - z0))), w_bad (1 - sigma(beta (z0 - logp + ref)))
    sft    sft_weight * -logp_c/n_c

See Rafailov et al., arXiv 2305.18290 (DPO); Azar et al., arXiv 2310.12036 (IPO); Meng et al.,
arXiv 2405.14734 (SimPO); Hong et al., arXiv 2403.07691 (ORPO); Ethayarajh et al., arXiv 2402.01306
(KTO). IPO is per token by default, as in TRL, which asked its authors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gptoss_tune.recipe.schema import (
    DpoSection,
    IpoSection,
    KtoSection,
    OrpoSection,
    SimpoSection,
)
from gptoss_tune.train.preference.answers import Answers

PairSection = DpoSection | IpoSection | SimpoSection | OrpoSection
PreferenceMethod = PairSection | KtoSection


def objective(section: PreferenceMethod, answers: Answers, kl: Tensor | None = None) -> Tensor:
    """Return the loss of each pair, or of each labelled answer, ``[U]`` fp64.

    Args:
        section: The recipe's method.
        answers: Of a micro-batch; ``logps`` may have a gradient.
        kl: KTO's z0, a scalar without gradient; None for the other methods.
    """
    if isinstance(section, KtoSection):
        assert kl is not None
        return _kto(section, answers, kl)
    chosen, rejected = (answers.logps / answers.tokens).view(-1, 2).unbind(1)
    if isinstance(section, OrpoSection):
        return -chosen - section.beta * logsigmoid(_logit(chosen) - _logit(rejected))
    if isinstance(section, SimpoSection):
        margin = section.beta * (chosen - rejected) - section.gamma
        loss = _sigmoid_loss(margin, section.label_smoothing)
    else:
        margin = _difference(section, answers)
        if isinstance(section, IpoSection):
            loss = (margin - 1 / (2 * section.beta)).square()
        else:
            loss = _sigmoid_loss(section.beta * margin, section.label_smoothing)
    return loss - section.sft_weight * chosen if section.sft_weight else loss


def reward_scale(section: PreferenceMethod, answers: Answers) -> Tensor:
    """Return by what each token's log-ratio counts in the implicit reward of its answer, ``[A]``.

    The reward is ``beta`` times the log-ratio to the reference, or, for a method without one,
    ``beta`` times the mean log-probability of a token.
    """
    per_token = isinstance(section, SimpoSection | OrpoSection) or (
        isinstance(section, DpoSection | IpoSection) and section.length_normalized
    )
    scale = torch.full_like(answers.logps, section.beta)
    return scale / answers.tokens if per_token else scale


def _difference(section: DpoSection | IpoSection, answers: Answers) -> Tensor:
    ratio = answers.logps - answers.reference
    if section.length_normalized:
        ratio = ratio / answers.tokens
    chosen, rejected = ratio.view(-1, 2).unbind(1)
    return chosen - rejected


def _sigmoid_loss(margin: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def _logit(mean_logp: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` for ``p = exp(mean_logp)``, finite where p is 1."""
    certain = -torch.finfo(torch.float64).eps
    return mean_logp - torch.log(-torch.expm1(mean_logp.clamp(max=certain)))


def _kto(section: KtoSection, answers: Answers, kl: Tensor) -> Tensor:
    ratio, good = answers.logps - answers.reference, answers.signs > 0
    weights: Any = torch.where(good, section.desirable_weight, section.undesirable_weight)
    return weights.double() * (1 - torch.sigmoid(section.beta * answers.signs * (ratio - kl)))
