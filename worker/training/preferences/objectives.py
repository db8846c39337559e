"""What a preference method minimizes, as functions of the log-probabilities of whole answers.

The formulas of KTO are those of TRL 1.16's `KTOTrainer`; that of ORPO is the paper's (Hong et al. 2024, eq.
6), from which TRL differs in that it learns the prompt too. Knows no model and no tokens.

E: examples, comparisons or labelled answers. G: sequences of an example. B = E · G: sequences of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from app.core.specs.methods import DpoSpec, KtoSpec, OrpoSpec, PreferenceSpec
from worker.training.preferences.dpo_losses import ComparedAnswers, dpo_losses


@dataclass(frozen=True)
class AnswerScores:
    """The answers of a batch, those of an example next to each other.

    `log_probs_B`: the log-probability of each answer, the sum over its learned tokens, of which there are
    `tokens_B`. `reference_B`: the same by the reference model. `is_desirable_B`: whether an answer that has a
    label is a good one.
    """

    log_probs_B: torch.Tensor
    tokens_B: torch.Tensor
    reference_B: torch.Tensor | None = None
    is_desirable_B: torch.Tensor | None = None


@dataclass(frozen=True)
class RatedAnswers:
    """What a batch is reported with, one entry an answer that is rated.

    `reward_B`: by how much training has made the answer likelier than the reference model has it, times beta.
    `is_right_E`: whether an example's answers are in the right order; of a labelled answer, whether it is on
    the right side of the batch's mean.
    """

    reward_B: torch.Tensor
    log_prob_B: torch.Tensor
    is_good_B: torch.Tensor
    is_right_E: torch.Tensor


@dataclass(frozen=True)
class PreferenceLosses:
    """The loss of each example, whose mean is the batch's, and its rated answers."""

    losses_E: torch.Tensor
    rated: RatedAnswers


@dataclass(frozen=True)
class Objective:
    """A method's loss. `sequences`: so many sequences are computed of an example."""

    sequences: int
    needs_reference: bool
    compute: Callable[[AnswerScores], PreferenceLosses]


def make_objective(settings: PreferenceSpec) -> Objective:
    """The objective of a job's method."""
    match settings:
        case DpoSpec():
            return Objective(2, True, lambda answers: _compare(settings, answers))
        case KtoSpec():
            sequences = 1 if settings.loss_type == "apo_zero_unpaired" else 2
            return Objective(sequences, True, lambda answers: _weigh(settings, answers))
        case OrpoSpec():
            return Objective(2, False, lambda answers: _contrast(settings, answers))


def _compare(settings: DpoSpec, answers: AnswerScores) -> PreferenceLosses:
    """DPO: sequences are chosen, rejected, chosen, rejected …"""
    assert answers.reference_B is not None
    ratio_B = answers.log_probs_B - answers.reference_B
    comparison = ComparedAnswers(ratio_B[::2], ratio_B[1::2], *_halves(answers))
    losses_E = dpo_losses(settings, comparison)
    return PreferenceLosses(losses_E, _rate_pairs(settings.beta * ratio_B, answers))


def _weigh(settings: KtoSpec, answers: AnswerScores) -> PreferenceLosses:
    """KTO: sequences are a prompt with its answer, then that prompt with the answer to another one.

    The other answers estimate how far the model is from the reference model (the paper's z₀).
    """
    assert answers.reference_B is not None
    assert answers.is_desirable_B is not None
    ratio_B = answers.log_probs_B - answers.reference_B
    is_paired = settings.loss_type == "kto"
    step = 2 if is_paired else 1
    ratio_E, is_good_E = ratio_B[::step], answers.is_desirable_B[::step]
    distance = (
        ratio_B[1::2].mean().clamp(min=0).detach() if is_paired else torch.zeros_like(ratio_E[:1]).sum()
    )
    sign_E = torch.where(is_good_E, 1.0, -1.0)
    weight_E = torch.where(is_good_E, settings.desirable_weight, settings.undesirable_weight)
    losses_E = weight_E * (1 - torch.sigmoid(settings.beta * sign_E * (ratio_E - distance)))
    rated = RatedAnswers(
        settings.beta * ratio_E.detach(),
        answers.log_probs_B[::step].detach(),
        is_good_E,
        sign_E * (ratio_E.detach() - distance) > 0,
    )
    return PreferenceLosses(losses_E, rated)


def _contrast(settings: OrpoSpec, answers: AnswerScores) -> PreferenceLosses:
    """ORPO: the loss of the chosen answer, and the odds of it against the rejected one, token by token."""
    mean_B = answers.log_probs_B / answers.tokens_B
    log_odds_B = mean_B - _log1mexp(mean_B)
    ratio_E = log_odds_B[::2] - log_odds_B[1::2]
    losses_E = -mean_B[::2] - settings.beta * functional.logsigmoid(ratio_E)
    return PreferenceLosses(losses_E, _rate_pairs(settings.beta * mean_B, answers))


def _halves(answers: AnswerScores) -> tuple[torch.Tensor, ...]:
    """(log-probabilities of the chosen, of the rejected, token counts of the chosen, of the rejected)."""
    log_probs_B, tokens_B = answers.log_probs_B, answers.tokens_B
    return log_probs_B[::2], log_probs_B[1::2], tokens_B[::2], tokens_B[1::2]


def _rate_pairs(reward_B: torch.Tensor, answers: AnswerScores) -> RatedAnswers:
    reward_B = reward_B.detach()
    is_good_B = torch.arange(len(reward_B), device=reward_B.device) % 2 == 0
    return RatedAnswers(reward_B, answers.log_probs_B.detach(), is_good_B, reward_B[::2] > reward_B[1::2])


def _log1mexp(value: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(value)) of values below 0 (Mächler 2012). A certain answer has no finite odds: its value
    is taken to be just below 0."""
    value = value.clamp(max=-1e-6)
    # Either form has an infinite gradient where the other one is taken.
    is_small = value > -0.6931472
    by_expm1 = torch.log(-torch.expm1(torch.where(is_small, value, -0.1)))
    by_log1p = torch.log1p(-torch.exp(torch.where(is_small, -1.0, value)))
    return torch.where(is_small, by_expm1, by_log1p)
