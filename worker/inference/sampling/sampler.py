"""Samples the next token of every row on the device, with the settings and the seed of each row.

The random number of a token is a hash of the row's seed and of the number of tokens that the row has made, so
the text of a seed does not depend on the other rows of the batch. A row whose scores are not finite gets
NO_TOKEN, which changes no other row. Only `to_host` waits for the device: a step may be sampled before the
tokens of the step before are read.
Shape letters: R all rows, B rows of a step, V vocabulary, K alternatives (the most that any row requests),
W words of 32 bits.
"""

import math
from collections.abc import Mapping, Sequence as Listed
from dataclasses import dataclass

import torch

from app.core.engine.sampling import MIN_LOGPROB, Sampling
from worker.inference.batching.prompt_scores import ScoredToken
from worker.inference.batching.sequence import NO_TOKEN, SampledToken, Sequence
from worker.inference.sampling.drafted import DraftedPositions
from worker.inference.sampling.logits_processors import (
    FrequencyPenalties,
    GrammarMask,
    LogitBias,
    RepetitionPenalty,
)
from worker.inference.sampling.row_settings import RowSettings, StepSettings

_GREEDY = Sampling(temperature=0)
# Rows of logits that are converted to 32 bits at the same time.
_SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of the model's own distribution: before bias, penalties, grammar and temperature."""

    chosen_B: torch.Tensor
    top_values_BK: torch.Tensor
    top_ids_BK: torch.Tensor

    def to_host(self) -> list[ScoredToken]:
        """The log-probabilities by row. Waits for the device."""
        rows = zip(self.chosen_B.tolist(), self.top_ids_BK.tolist(), self.top_values_BK.tolist(), strict=True)
        return [ScoredToken(chosen, tuple(zip(ids, values, strict=True))) for chosen, ids, values in rows]


@dataclass(frozen=True)
class SampledBatch:
    """The tokens of one step, on the device. `top_counts`: alternatives requested by row, or None.

    A token is an id of the model's vocabulary, or NO_TOKEN.
    """

    tokens_B: torch.Tensor
    logprobs: Logprobs | None
    top_counts: Listed[int | None]

    def to_host(self) -> list[SampledToken]:
        """The tokens by row. Waits for the device."""
        tokens: list[int] = self.tokens_B.tolist()
        if self.logprobs is None:
            return [SampledToken(token) for token in tokens]
        chosen = self.logprobs.chosen_B.tolist()
        top_values, top_ids = self.logprobs.top_values_BK.tolist(), self.logprobs.top_ids_BK.tolist()
        return [
            _with_logprob(token, count, *rest)
            for token, count, *rest in zip(tokens, self.top_counts, chosen, top_ids, top_values, strict=True)
        ]


@dataclass(frozen=True)
class VerifiedBatch:
    """The tokens at all positions of a verifying step, and for each row what of them it has made.

    `accepted_B`: how many drafted tokens; `last_B`: the token after them, 0 in the place of NO_TOKEN.
    """

    sampled: SampledBatch
    accepted_B: torch.Tensor
    last_B: torch.Tensor


class Sampler:
    """Holds the settings of all rows and samples the next tokens of some of them."""

    def __init__(
        self, *, max_rows: int, vocabulary_size: int, device: torch.device, uses_kernels: bool = False
    ) -> None:
        """`uses_kernels`: greedy tokens are chosen by a Triton kernel."""
        self._uses_kernels = uses_kernels
        self._settings = RowSettings(max_rows, device)
        size = (max_rows, vocabulary_size, device)
        self._grammar_mask = GrammarMask(*size)
        # In the order of application: the grammar comes last, so that no bias allows what it forbids.
        self._processors = (
            LogitBias(*size),
            RepetitionPenalty(*size),
            FrequencyPenalties(*size),
            self._grammar_mask,
        )
        # The settings on the host, to skip what no row needs without a wait for the device.
        self._samplings = [_GREEDY] * max_rows

    @torch.inference_mode()
    def set_row(self, row: int, sampling: Sampling, seed: int, prompt_ids: Listed[int]) -> None:
        """Set a row to the settings of the sequence that starts in it, without a grammar's mask."""
        self._settings.set(row, sampling, seed)
        for processor in self._processors:
            processor.set_row(row, sampling, prompt_ids)
        self._samplings[row] = sampling

    def set_masks(self, sequences: Listed[Sequence]) -> None:
        """Set the masks of sequences that have a grammar. Their last tokens must have been added."""
        for sequence in sequences:
            allowed = sequence.allowed_tokens()
            if allowed is not None:
                self.set_mask(sequence.row, torch.from_numpy(allowed))

    @torch.inference_mode()
    def set_mask(self, row: int, allowed_W: torch.Tensor) -> None:
        """Allow only these tokens in a row, until the next call: a bit each, in int32 words on the host."""
        self._grammar_mask.set_mask(row, allowed_W)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Move the settings of row `source` to row `target`."""
        self._settings.move(source, target)
        for processor in self._processors:
            processor.move(source, target)
        self._samplings[target], self._samplings[source] = self._samplings[source], _GREEDY

    @torch.inference_mode()
    def sample(self, logits_BV: torch.Tensor, first_row: int, active_B: torch.Tensor) -> SampledBatch:
        """Sample the next tokens of the rows from `first_row` on. Inactive rows keep their state.

        `active_B`: 1, or 0 for inactive rows. All is computed before any state changes: after an error the
        step can be sampled again.
        """
        self._settings.write()
        rows = slice(first_row, first_row + len(logits_BV))
        samplings = self._samplings[rows]
        if self._uses_kernels and self._is_plainly_greedy(rows):
            from worker.kernels.serving import greedy

            return SampledBatch(greedy.choose(logits_BV, NO_TOKEN), None, [None] * len(samplings))
        logits_BV, active_B = logits_BV.float(), active_B.bool()
        scores_BV = logits_BV
        for processor in self._processors:
            scores_BV = processor.apply(scores_BV, rows)
        here = self._settings.at(rows)
        tokens_B, sampled = _choose(logits_BV, scores_BV, here, samplings)
        if _any_draws(samplings):
            here.made_count_B += active_B
        for processor in self._processors:
            processor.record(tokens_B, rows, active_B)
        return sampled

    @torch.inference_mode()
    def verify(
        self, logits_NV: torch.Tensor, drafted: DraftedPositions, allowed: Mapping[int, torch.Tensor]
    ) -> VerifiedBatch:
        """Sample a token at each position; record for each row those up to the first that was not drafted.

        Each position is sampled as `sample` would after the drafted tokens before it, with the random number
        that this token of the row has there. `allowed`: masks of grammars, by index in N. All is computed
        before any state changes.
        """
        self._settings.write()
        samplings = [self._samplings[row] for row in drafted.rows]
        logits_NV = logits_NV.float()
        scores_NV = logits_NV
        for processor in self._processors:
            scores_NV = processor.apply_drafted(scores_NV, drafted)
        scores_NV = self._grammar_mask.hide(scores_NV, allowed)
        here = self._settings.at(drafted.rows_N)
        here.made_count_B = here.made_count_B + drafted.offsets_N
        tokens_N, sampled = _choose(logits_NV, scores_NV, here, samplings)
        accepted_B = drafted.accepted_counts(sampled.tokens_B)
        tokens_BW = tokens_N[drafted.index_BW]
        last_B = tokens_BW.gather(1, accepted_B[:, None]).squeeze(1)
        offsets_W = torch.arange(drafted.width, device=accepted_B.device)
        is_made_BW = offsets_W <= accepted_B[:, None]
        if _any_draws(samplings):
            self._settings.add_drawn(drafted.rows_B, accepted_B + 1)
        for processor in self._processors:
            processor.record_drafted(tokens_BW, is_made_BW, drafted)
        return VerifiedBatch(sampled, accepted_B, last_B)

    def _is_plainly_greedy(self, rows: slice) -> bool:
        """Whether all rows take the token with the highest logit, and no more of the logits is asked for."""
        samplings = self._samplings[rows]
        return (
            not _any_draws(samplings)
            and all(one.logprobs is None for one in samplings)
            and not any(processor.is_used(rows) for processor in self._processors)
        )


def _any_draws(samplings: list[Sampling]) -> bool:
    return any(not one.is_greedy for one in samplings)


def _choose(
    logits_BV: torch.Tensor, scores_BV: torch.Tensor, here: StepSettings, samplings: list[Sampling]
) -> tuple[torch.Tensor, SampledBatch]:
    """A token for each row, 0 where its scores are not finite, and what the host gets of it."""
    tokens_B = scores_BV.argmax(-1)
    # NaN counts as the maximum and compares as false, so one of them is found as an infinity is.
    is_sound_B = scores_BV.gather(1, tokens_B[:, None]).squeeze(1).abs() < torch.inf
    if _any_draws(samplings):
        tokens_B = torch.where(here.temperature_B > 0, _draw(scores_BV, here, samplings), tokens_B)
        # Scores that overflow in the draw have no cumulative probability: the search ends past the last.
        is_sound_B &= tokens_B < scores_BV.shape[1]
    # An id that the vocabulary lacks would end the process on a GPU, where it is used as an index.
    tokens_B = torch.where(is_sound_B, tokens_B, 0)
    top_counts = [one.logprobs for one in samplings]
    logprobs = _logprobs(logits_BV, tokens_B, top_counts)
    return tokens_B, SampledBatch(torch.where(is_sound_B, tokens_B, NO_TOKEN), logprobs, top_counts)


def _logprobs(
    logits_BV: torch.Tensor, tokens_B: torch.Tensor, top_counts: list[int | None]
) -> Logprobs | None:
    """Log-probabilities of the step; None where no row requests them."""
    counts = [count for count in top_counts if count is not None]
    return _logprobs_of(logits_BV, tokens_B, max(counts)) if counts else None


def _logprobs_of(logits_BV: torch.Tensor, tokens_B: torch.Tensor, top_count: int) -> Logprobs:
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    # A score of infinity leaves no probabilities, whichever token is chosen.
    total_B1 = total_B1.masked_fill(total_B1.isinf(), torch.nan)
    top = logits_BV.topk(min(top_count, logits_BV.shape[1]), dim=-1)
    chosen_B = (logits_BV.gather(1, tokens_B[:, None]) - total_B1).squeeze(1)
    top_values_BK = (top.values - total_B1).clamp(min=MIN_LOGPROB)
    return Logprobs(chosen_B.clamp(min=MIN_LOGPROB), top_values_BK, top.indices)


def score_tokens(logits_NV: torch.Tensor, tokens_N: torch.Tensor, top_count: int) -> Logprobs:
    """Log-probabilities of these tokens by the logits before each; NaN where a score is infinite."""
    slices = zip(logits_NV.split(_SCORED_AT_ONCE), tokens_N.split(_SCORED_AT_ONCE), strict=True)
    parts = [_logprobs_of(logits_BV.float(), tokens_B, top_count) for logits_BV, tokens_B in slices]
    return Logprobs(
        torch.cat([one.chosen_B for one in parts]),
        torch.cat([one.top_values_BK for one in parts]),
        torch.cat([one.top_ids_BK for one in parts]),
    )


def _with_logprob(
    token: int, count: int | None, chosen: float, top_ids: list[int], top_values: list[float]
) -> SampledToken:
    if count is None:
        return SampledToken(token)
    if math.isnan(chosen):
        # A grammar's mask has hidden a score that is not finite.
        return SampledToken(NO_TOKEN)
    return SampledToken(
        token, ScoredToken(chosen, tuple(zip(top_ids[:count], top_values[:count], strict=True)))
    )


def _draw(scores_BV: torch.Tensor, here: StepSettings, samplings: list[Sampling]) -> torch.Tensor:
    """One token per row: the first whose cumulative probability exceeds the row's random number."""
    # The result of greedy rows is not used; they only must not divide by zero.
    temperature_B = torch.where(here.temperature_B > 0, here.temperature_B, 1)
    scores_BV = scores_BV / temperature_B[:, None]
    likeliest_B1 = scores_BV.amax(-1, keepdim=True) if any(one.min_p for one in samplings) else None
    if any(one.top_p < 1 or one.top_k for one in samplings):
        scores_BV = scores_BV.masked_fill(scores_BV < _threshold(scores_BV, here), -torch.inf)
    if likeliest_B1 is not None:
        # A min-p of 0 has the logarithm -inf and masks nothing.
        scores_BV = scores_BV.masked_fill(scores_BV < likeliest_B1 + here.min_p_B[:, None].log(), -torch.inf)
    cumulative_BV = scores_BV.softmax(-1).cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    random_B1 = _random(here.seed_B, here.made_count_B)[:, None].to(total_B1.dtype)
    # Rounding must not raise the target to the total: there is no token beyond the last.
    target_B1 = torch.minimum(random_B1 * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)


def _threshold(scores_BV: torch.Tensor, here: StepSettings) -> torch.Tensor:
    """The lowest score that top-k and then top-p keep, [B, 1]; -inf where a row uses neither."""
    sorted_BV = scores_BV.sort(-1, descending=True).values
    last_B1 = (here.top_k_B[:, None] - 1).clamp(0, scores_BV.shape[1] - 1)
    by_k_B1 = torch.where(here.top_k_B[:, None] > 0, sorted_BV.gather(1, last_B1), -torch.inf)
    probabilities_BV = sorted_BV.masked_fill(sorted_BV < by_k_B1, -torch.inf).softmax(-1)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    kept_B1 = (before_BV < here.top_p_B[:, None]).sum(-1, keepdim=True).clamp(min=1)
    by_p_B1 = torch.where(here.top_p_B[:, None] < 1, sorted_BV.gather(1, kept_B1 - 1), -torch.inf)
    return torch.maximum(by_k_B1, by_p_B1)


def _random(seed_B: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """Uniform in [0, 1): splitmix64 (Steele et al. 2014) at position `count` of the row's stream."""
    bits_B = seed_B + (count_B + 1) * -0x61C8864680B583EB
    bits_B = (bits_B ^ _shift_right(bits_B, 30)) * -0x40A7B892E31B1A47
    bits_B = (bits_B ^ _shift_right(bits_B, 27)) * -0x6B2FB644ECCEEE15
    bits_B = bits_B ^ _shift_right(bits_B, 31)
    return _shift_right(bits_B, 11).double() * 2.0**-53


def _shift_right(bits_B: torch.Tensor, count: int) -> torch.Tensor:
    """Logical right shift: that of int64 tensors is arithmetic."""
    return (bits_B >> count) & ((1 << (64 - count)) - 1)
