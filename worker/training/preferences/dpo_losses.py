"""The losses of direct preference optimization and its relatives, each a loss for every comparison.

The formulas are those of TRL 1.16's `DPOTrainer`, which names the paper of each. For `sigmoid`, TRL ignores
`label_smoothing`; here it is that of conservative DPO (Mitchell 2023), as in the code of DPO's authors.

E: comparisons of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from app.core.specs.methods import DpoLoss, DpoSpec


@dataclass(frozen=True)
class ComparedAnswers:
    """The answers of a batch's comparisons.

    The ratios are log-probabilities minus the reference model's, of whole answers; token counts are those of
    the learned tokens.
    """

    chosen_ratio_E: torch.Tensor
    rejected_ratio_E: torch.Tensor
    chosen_E: torch.Tensor
    rejected_E: torch.Tensor
    chosen_tokens_E: torch.Tensor
    rejected_tokens_E: torch.Tensor

    @property
    def margin_E(self) -> torch.Tensor:
        """By how much training has moved the chosen answers away from the rejected ones."""
        return self.chosen_ratio_E - self.rejected_ratio_E

    @property
    def mean_margin_E(self) -> torch.Tensor:
        """The margin of mean log-probabilities of a token, which does not depend on the answers' lengths."""
        return self.chosen_ratio_E / self.chosen_tokens_E - self.rejected_ratio_E / self.rejected_tokens_E


Loss = Callable[[DpoSpec, ComparedAnswers], torch.Tensor]


def dpo_losses(settings: DpoSpec, comparison: ComparedAnswers) -> torch.Tensor:
    """The losses [E] of a batch's comparisons: the weighted sum of the losses that the settings name."""
    losses = [weight * _LOSSES[name](settings, comparison) for name, weight in settings.losses]
    return torch.stack(losses).sum(dim=0)


def _sigmoid(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    return _smoothed(settings, settings.beta * pairs.margin_E)


def _hinge(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    return torch.relu(1 - settings.beta * pairs.margin_E)


def _ipo(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    return (pairs.mean_margin_E - 1 / (2 * settings.beta)).square()


def _exo_pair(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    logits_E = settings.beta * pairs.margin_E
    smoothing = torch.tensor(settings.label_smoothing, device=logits_E.device)
    right_E = torch.sigmoid(logits_E) * (logsigmoid(logits_E) - torch.log1p(-smoothing))
    wrong_E = torch.sigmoid(-logits_E) * (logsigmoid(-logits_E) - torch.log(smoothing))
    return right_E + wrong_E


def _nca_pair(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    chosen_E, rejected_E = settings.beta * pairs.chosen_ratio_E, settings.beta * pairs.rejected_ratio_E
    return -logsigmoid(chosen_E) - 0.5 * logsigmoid(-chosen_E) - 0.5 * logsigmoid(-rejected_E)


def _robust(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    logits_E, smoothing = settings.beta * pairs.margin_E, settings.label_smoothing
    clean_E, flipped_E = -(1 - smoothing) * logsigmoid(logits_E), -smoothing * logsigmoid(-logits_E)
    return (clean_E - flipped_E) / (1 - 2 * smoothing)


def _bco_pair(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    chosen_E, rejected_E = settings.beta * pairs.chosen_ratio_E, settings.beta * pairs.rejected_ratio_E
    return -logsigmoid(chosen_E) - logsigmoid(-rejected_E)


def _sppo_hard(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    target = 0.5 / settings.beta
    return (pairs.chosen_ratio_E - target).square() + (pairs.rejected_ratio_E + target).square()


def _aot(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    """Compares the sorted margins of a batch with the reference model's, sorted as well."""
    ratio_E = pairs.chosen_E - pairs.rejected_E
    reference_E = ratio_E - pairs.margin_E
    return _smoothed(settings, settings.beta * (ratio_E.sort().values - reference_E.sort().values))


def _aot_unpaired(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    sorted_E = pairs.chosen_ratio_E.sort().values - pairs.rejected_ratio_E.sort().values
    return _smoothed(settings, settings.beta * sorted_E)


def _apo_zero(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    chosen_E, rejected_E = settings.beta * pairs.chosen_ratio_E, settings.beta * pairs.rejected_ratio_E
    return 1 - torch.sigmoid(chosen_E) + torch.sigmoid(rejected_E)


def _apo_down(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    chosen_E = settings.beta * pairs.chosen_ratio_E
    return torch.sigmoid(chosen_E) + 1 - torch.sigmoid(settings.beta * pairs.margin_E)


def _discopop(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    logits_E = settings.beta * pairs.margin_E
    share_E = torch.sigmoid(logits_E / settings.discopop_tau)
    return -logsigmoid(logits_E) * (1 - share_E) + torch.exp(-logits_E) * share_E


def _sft(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    """The mean loss of the tokens of all chosen answers, for every comparison."""
    return (-pairs.chosen_E.sum() / pairs.chosen_tokens_E.sum()).expand(len(pairs.chosen_E))


def _sigmoid_norm(settings: DpoSpec, pairs: ComparedAnswers) -> torch.Tensor:
    return -logsigmoid(settings.beta * pairs.mean_margin_E)


def _smoothed(settings: DpoSpec, logits_E: torch.Tensor) -> torch.Tensor:
    smoothing = settings.label_smoothing
    return -(1 - smoothing) * logsigmoid(logits_E) - smoothing * logsigmoid(-logits_E)


_LOSSES: dict[DpoLoss, Loss] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
    "sigmoid_norm": _sigmoid_norm,
}
