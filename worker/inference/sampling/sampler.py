"""Choose the next token of every row, on the device: each row has its own settings and its own noise.

The noise is counted, not drawn: it is a hash of the row's seed and of how many tokens the row has made, so
the text of a seed does not depend on who else is in the batch. Nothing here waits for the device: a step may
be sampled before anybody has read the tokens of the step before.
Shape letters: R all rows, B rows of a step, V vocabulary, K alternatives (of the row that asks for most),
W words.
"""

from collections.abc import Sequence as Listed
from dataclasses import dataclass, fields

import torch

from app.core.engine.messages import Sampling
from worker.inference.batching.sequence import SampledLogprob, SampledToken, Sequence
from worker.inference.sampling.logits_processors import Frequencies, Grammar, LogitBias, Repetitions

_GREEDY = Sampling(temperature=0)


@dataclass
class RowSettings:
    """How the token of each row is drawn, as tensors over all rows."""

    temperature_R: torch.Tensor
    top_p_R: torch.Tensor
    top_k_R: torch.Tensor
    min_p_R: torch.Tensor
    seed_R: torch.Tensor
    made_count_R: torch.Tensor


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of the model's own distribution: before bias, penalties, grammar and temperature."""

    chosen_B: torch.Tensor
    top_values_BK: torch.Tensor
    top_ids_BK: torch.Tensor


@dataclass(frozen=True)
class Sampled:
    """What one step made, on the device. `asked`: alternatives that each row wants; None: no logprobs."""

    tokens_B: torch.Tensor
    logprobs: Logprobs | None
    asked: Listed[int | None]

    def to_host(self) -> list[SampledToken]:
        """By row. Waits for the device."""
        tokens: list[int] = self.tokens_B.tolist()
        if self.logprobs is None:
            return [SampledToken(token) for token in tokens]
        chosen = self.logprobs.chosen_B.tolist()
        top_values, top_ids = self.logprobs.top_values_BK.tolist(), self.logprobs.top_ids_BK.tolist()
        return [
            SampledToken(token, _token_logprob(count, *rest))
            for token, count, *rest in zip(tokens, self.asked, chosen, top_ids, top_values, strict=True)
        ]


class Sampler:
    """Holds the settings of all rows and samples for some of them."""

    def __init__(self, *, max_rows: int, vocabulary_size: int, device: torch.device) -> None:
        floats = torch.zeros(max_rows, device=device)
        counts = torch.zeros(max_rows, dtype=torch.long, device=device)
        self._rows = RowSettings(
            temperature_R=floats.clone(),
            top_p_R=floats + 1,
            top_k_R=counts.clone(),
            min_p_R=floats.clone(),
            seed_R=counts.clone(),
            made_count_R=counts.clone(),
        )
        size = (max_rows, vocabulary_size, device)
        self._grammar = Grammar(*size)
        # In the order in which they are applied: what the grammar forbids stays forbidden.
        self._edits = (LogitBias(*size), Repetitions(*size), Frequencies(*size), self._grammar)
        # The same on the host: what nobody asks for is not computed, and asking costs no wait for the device.
        self._asked = [_GREEDY] * max_rows

    @torch.inference_mode()
    def set_row(self, row: int, sampling: Sampling, seed: int, prompt_ids: Listed[int]) -> None:
        """A sequence with these settings begins in this row, without a grammar's mask so far."""
        rows = self._rows
        # `fill_` takes a number as it is; an assignment would copy it from the host and wait for the device.
        rows.temperature_R[row].fill_(sampling.temperature)
        rows.top_p_R[row].fill_(sampling.top_p)
        rows.top_k_R[row].fill_(sampling.top_k)
        rows.min_p_R[row].fill_(sampling.min_p)
        rows.seed_R[row].fill_(seed)
        rows.made_count_R[row].zero_()
        for edit in self._edits:
            edit.set_row(row, sampling, prompt_ids)
        self._asked[row] = sampling

    def set_masks(self, sequences: Listed[Sequence]) -> None:
        """Let those that have a grammar say only what it allows next; it must know their last token."""
        for sequence in sequences:
            allowed = sequence.allowed_tokens()
            if allowed is not None:
                self.set_mask(sequence.row, torch.from_numpy(allowed))

    @torch.inference_mode()
    def set_mask(self, row: int, allowed_W: torch.Tensor) -> None:
        """What the row may say until it is set anew: a bit for each token, in int32 words on the host."""
        self._grammar.set_mask(row, allowed_W)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """The sequence of one row goes on in another."""
        for one in fields(self._rows):
            tensor: torch.Tensor = getattr(self._rows, one.name)
            tensor[target] = tensor[source]
        for edit in self._edits:
            edit.move(source, target)
        self._asked[target], self._asked[source] = self._asked[source], _GREEDY

    @torch.inference_mode()
    def sample(self, logits_BV: torch.Tensor, first_row: int, active_B: torch.Tensor) -> Sampled:
        """The next tokens of the rows from `first_row` on. Rows that are not active keep their counts."""
        rows = slice(first_row, first_row + len(logits_BV))
        asked = self._asked[rows]
        logits_BV = logits_BV.float()
        scores_BV = logits_BV
        for edit in self._edits:
            scores_BV = edit.apply(scores_BV, rows)
        tokens_B = scores_BV.argmax(-1)
        if any(one.temperature > 0 for one in asked):
            here = self._settings(rows)
            tokens_B = torch.where(here.temperature_R > 0, _drawn(scores_BV, here, asked), tokens_B)
            here.made_count_R += active_B
        for edit in self._edits:
            edit.count(tokens_B, rows, active_B)
        tops = [one.logprobs for one in asked]
        return Sampled(tokens_B, _logprobs(logits_BV, tokens_B, tops), tops)

    def _settings(self, rows: slice) -> RowSettings:
        return RowSettings(**{one.name: getattr(self._rows, one.name)[rows] for one in fields(RowSettings)})


def _logprobs(logits_BV: torch.Tensor, tokens_B: torch.Tensor, tops: list[int | None]) -> Logprobs | None:
    """None where no row asks."""
    counts = [count for count in tops if count is not None]
    if not counts:
        return None
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    top = logits_BV.topk(min(max(counts), logits_BV.shape[1]), dim=-1)
    chosen_B = (logits_BV.gather(1, tokens_B[:, None]) - total_B1).squeeze(1)
    return Logprobs(chosen_B, top.values - total_B1, top.indices)


def _token_logprob(
    count: int | None, chosen: float, top_ids: list[int], top_values: list[float]
) -> SampledLogprob | None:
    if count is None:
        return None
    return SampledLogprob(chosen, tuple(zip(top_ids[:count], top_values[:count], strict=True)))


def _drawn(scores_BV: torch.Tensor, here: RowSettings, asked: list[Sampling]) -> torch.Tensor:
    """One token a row: where the cumulated probability first exceeds the row's noise."""
    # Greedy rows are thrown away afterwards; they only must not divide by zero.
    temperature_B = torch.where(here.temperature_R > 0, here.temperature_R, 1)
    scores_BV = scores_BV / temperature_B[:, None]
    likeliest_B1 = scores_BV.amax(-1, keepdim=True) if any(one.min_p for one in asked) else None
    if any(one.top_p < 1 or one.top_k for one in asked):
        scores_BV = scores_BV.masked_fill(scores_BV < _threshold(scores_BV, here), -torch.inf)
    if likeliest_B1 is not None:
        # The logarithm of 0 is -inf, below which nothing is.
        scores_BV = scores_BV.masked_fill(scores_BV < likeliest_B1 + here.min_p_R[:, None].log(), -torch.inf)
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
