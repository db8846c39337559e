"""Choose the next token of every row, on the device: each row has its own settings and its own noise.

The noise is counted, not drawn: it is a hash of the row's seed and of how many tokens the row has made, so
the text of a seed does not depend on who else is in the batch.
Shape letters: R all rows, B rows of a step, V vocabulary.
"""

from dataclasses import dataclass, fields

import torch

from app.core.messages import Sampling

_GREEDY = Sampling(temperature=0)


@dataclass
class RowSettings:
    """What sampling needs to know of each row, as tensors over all rows."""

    temperature_R: torch.Tensor
    top_p_R: torch.Tensor
    top_k_R: torch.Tensor
    repetition_penalty_R: torch.Tensor
    seed_R: torch.Tensor
    made_count_R: torch.Tensor
    seen_RV: torch.Tensor


class Sampler:
    """Holds the settings of all rows and samples for the first few of them."""

    def __init__(self, *, max_rows: int, vocabulary_size: int, device: torch.device) -> None:
        floats = torch.ones(max_rows, device=device)
        counts = torch.zeros(max_rows, dtype=torch.long, device=device)
        self._rows = RowSettings(
            temperature_R=floats * 0,
            top_p_R=floats.clone(),
            top_k_R=counts.clone(),
            repetition_penalty_R=floats.clone(),
            seed_R=counts.clone(),
            made_count_R=counts.clone(),
            seen_RV=torch.zeros(max_rows, vocabulary_size, dtype=torch.bool, device=device),
        )
        # The same on the host: what nobody asks for is not computed, and asking costs no wait for the device.
        self._asked = [_GREEDY] * max_rows

    def set_row(self, row: int, sampling: Sampling, seed: int, prompt_ids: torch.Tensor) -> None:
        """A sequence with these settings begins in this row."""
        rows = self._rows
        rows.temperature_R[row] = sampling.temperature
        rows.top_p_R[row] = sampling.top_p
        rows.top_k_R[row] = sampling.top_k
        rows.repetition_penalty_R[row] = sampling.repetition_penalty
        rows.seed_R[row] = seed
        rows.made_count_R[row] = 0
        rows.seen_RV[row] = False
        rows.seen_RV[row, prompt_ids] = True
        self._asked[row] = sampling

    def move(self, source: int, target: int) -> None:
        """The sequence of one row goes on in another."""
        for one in fields(self._rows):
            tensor: torch.Tensor = getattr(self._rows, one.name)
            tensor[target] = tensor[source]
        self._asked[target], self._asked[source] = self._asked[source], _GREEDY

    def sample(self, logits_BV: torch.Tensor, first_row: int, active_B: torch.Tensor) -> torch.Tensor:
        """The next tokens of the rows from `first_row` on. Rows that are not active keep their counts."""
        rows = slice(first_row, first_row + len(logits_BV))
        asked = self._asked[rows]
        here = RowSettings(**{one.name: getattr(self._rows, one.name)[rows] for one in fields(RowSettings)})
        scores_BV = logits_BV.float()
        if any(one.repetition_penalty != 1 for one in asked):
            scores_BV = _penalized(scores_BV, here)
        tokens_B = scores_BV.argmax(-1)
        if any(one.temperature > 0 for one in asked):
            truncates = any(one.top_p < 1 or one.top_k for one in asked)
            tokens_B = torch.where(here.temperature_R > 0, _drawn(scores_BV, here, truncates), tokens_B)
        here.made_count_R += active_B
        seen_B1 = here.seen_RV.gather(1, tokens_B[:, None]) | active_B[:, None]
        here.seen_RV.scatter_(1, tokens_B[:, None], seen_B1)
        return tokens_B


def _penalized(scores_BV: torch.Tensor, here: RowSettings) -> torch.Tensor:
    """What was said becomes less likely (CTRL, Keskar et al. 2019, as transformers applies it)."""
    penalty_B1 = here.repetition_penalty_R[:, None]
    penalized_BV = torch.where(scores_BV < 0, scores_BV * penalty_B1, scores_BV / penalty_B1)
    return torch.where(here.seen_RV, penalized_BV, scores_BV)


def _drawn(scores_BV: torch.Tensor, here: RowSettings, truncates: bool) -> torch.Tensor:
    """One token a row: where the cumulated probability first exceeds the row's noise."""
    # Greedy rows are thrown away afterwards; they only must not divide by zero.
    temperature_B = torch.where(here.temperature_R > 0, here.temperature_R, 1)
    scores_BV = scores_BV / temperature_B[:, None]
    if truncates:
        scores_BV = scores_BV.masked_fill(scores_BV < _threshold(scores_BV, here), -torch.inf)
    cumulated_BV = scores_BV.softmax(-1).cumsum(-1)
    total_B1 = cumulated_BV[:, -1:]
    noise_B1 = _noise(here.seed_R, here.made_count_R)[:, None].to(total_B1.dtype)
    # Rounding must not carry the noise up to the total: beyond the last token there is none.
    target_B1 = torch.minimum(noise_B1 * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulated_BV, target_B1, right=True).squeeze(1)


def _threshold(scores_BV: torch.Tensor, here: RowSettings) -> torch.Tensor:
    """The lowest score that top-k and then top-p leave, [B, 1]; -inf where a row asks for neither."""
    sorted_BV = scores_BV.sort(-1, descending=True).values
    last_B1 = (here.top_k_R[:, None] - 1).clamp(0, scores_BV.shape[1] - 1)
    by_k_B1 = torch.where(here.top_k_R[:, None] > 0, sorted_BV.gather(1, last_B1), -torch.inf)
    probabilities_BV = sorted_BV.masked_fill(sorted_BV < by_k_B1, -torch.inf).softmax(-1)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    kept_B1 = (before_BV < here.top_p_R[:, None]).sum(-1, keepdim=True).clamp(min=1)
    by_p_B1 = torch.where(here.top_p_R[:, None] < 1, sorted_BV.gather(1, kept_B1 - 1), -torch.inf)
    return torch.maximum(by_k_B1, by_p_B1)


def _noise(seed_B: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """Uniform in [0, 1): splitmix64 (Steele et al. 2014) at position `count` of the row's stream."""
    bits_B = seed_B + (count_B + 1) * -0x61C8864680B583EB
    bits_B = (bits_B ^ _shift_right(bits_B, 30)) * -0x40A7B892E31B1A47
    bits_B = (bits_B ^ _shift_right(bits_B, 27)) * -0x6B2FB644ECCEEE15
    bits_B = bits_B ^ _shift_right(bits_B, 31)
    return _shift_right(bits_B, 11).double() * 2.0**-53


def _shift_right(bits_B: torch.Tensor, count: int) -> torch.Tensor:
    """Without the sign: int64 tensors shift arithmetically."""
    return (bits_B >> count) & ((1 << (64 - count)) - 1)
