"""Logits processors: bias, penalties and a grammar's mask, applied on the device before a token is chosen.

A processor computes nothing in a step where no row uses it, and allocates its state at its first use.
Shape letters: R all rows, B rows of a step, N positions of a verifying step, T tokens of a row that are
recorded, V vocabulary, P pairs of a row's bias, W words of 32 bits (of drafts: positions of a row).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from app.core.engine.sampling import MAX_LOGIT_BIAS, Sampling
from worker.inference.sampling.drafted import DraftedPositions

_WORD_BITS = 32


class LogitsProcessor(ABC):
    """Tensors over all rows, neutral in the rows that do not use the processor."""

    def __init__(self, max_rows: int, vocabulary_size: int, device: torch.device) -> None:
        self._max_rows = max_rows
        self._vocabulary_size = vocabulary_size
        self._device = device
        # By row, whether it uses the processor.
        self._is_used = [False] * max_rows
        self._state: tuple[torch.Tensor, ...] = ()

    def set_row(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Set a row to the settings of the sequence that starts in it."""
        self._is_used[row] = self.is_needed(sampling)
        if self._is_used[row]:
            self._allocate()
        if self._state:
            self.clear(row)
        if self._is_used[row]:
            self.fill(row, sampling, prompt_ids)

    def move(self, source: int, target: int) -> None:
        """Move the state of row `source` to row `target`."""
        if self._is_used[source] or self._is_used[target]:
            for tensor in self._state:
                tensor[target] = tensor[source]
        self._is_used[target], self._is_used[source] = self._is_used[source], False

    def is_used(self, rows: slice) -> bool:
        """Whether any of these rows uses the processor."""
        return any(self._is_used[rows])

    def apply(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the processed scores of these rows; `scores_BV` itself where no row uses the processor."""
        return self.process(scores_BV, rows) if self.is_used(rows) else scores_BV

    def record(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Record the tokens sampled in the active rows, where a row uses the processor."""
        if self.is_used(rows):
            self.update(tokens_B, rows, active_B)

    def apply_drafted(self, scores_NV: torch.Tensor, drafted: DraftedPositions) -> torch.Tensor:
        """Returns the processed scores of these positions, each as after the drafted tokens before it."""
        is_used = any(self._is_used[row] for row in drafted.rows)
        return self.process_drafted(scores_NV, drafted) if is_used else scores_NV

    def record_drafted(
        self, tokens_BT: torch.Tensor, is_made_BT: torch.Tensor, drafted: DraftedPositions
    ) -> None:
        """Record the tokens that the rows have made, of which the first of each row always is one."""
        if any(self._is_used[row] for row in drafted.rows):
            self.update_drafted(tokens_BT, is_made_BT, drafted)

    def _allocate(self) -> None:
        if not self._state:
            self._state = self.make_state()

    def _zeros(self, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(self._max_rows, width, dtype=dtype, device=self._device)

    @abstractmethod
    def is_needed(self, sampling: Sampling) -> bool:
        """Whether the processor changes anything under these settings."""

    @abstractmethod
    def make_state(self) -> tuple[torch.Tensor, ...]:
        """Returns new tensors whose first dimension is the row, neutral in all rows."""

    def clear(self, row: int) -> None:
        """Make a row neutral."""
        for tensor in self._state:
            tensor[row] = 0

    @abstractmethod
    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Write the settings of a sequence to a neutral row."""

    @abstractmethod
    def process(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the processed scores; `scores_BV` is not changed."""

    @abstractmethod
    def process_drafted(self, scores_NV: torch.Tensor, drafted: DraftedPositions) -> torch.Tensor:
        """Returns the processed scores of the positions of a verifying step."""

    def update_drafted(
        self, tokens_BT: torch.Tensor, is_made_BT: torch.Tensor, drafted: DraftedPositions
    ) -> None:
        """Update the state with the tokens of a verifying step. By default nothing depends on them."""
        return

    def update(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Update the state with the sampled tokens. By default nothing depends on them."""
        return


class LogitBias(LogitsProcessor):
    """Adds a bias to the scores of the tokens that a row names."""

    def is_needed(self, sampling: Sampling) -> bool:
        """Whether any token has a bias."""
        return bool(sampling.logit_bias)

    def make_state(self) -> tuple[torch.Tensor, ...]:
        """Token ids [R, P] and biases [R, P]; unused pairs add 0 to token 0."""
        return self._zeros(MAX_LOGIT_BIAS, torch.long), self._zeros(MAX_LOGIT_BIAS, torch.float)

    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Write the pairs. Ids beyond the model's vocabulary, which a tokenizer may have, are skipped."""
        pairs = [
            (token, bias) for token, bias in sampling.logit_bias.items() if token < self._vocabulary_size
        ]
        ids_RP, values_RP = self._state
        ids_RP[row, : len(pairs)] = torch.tensor([token for token, _ in pairs], dtype=torch.long)
        values_RP[row, : len(pairs)] = torch.tensor([bias for _, bias in pairs], dtype=torch.float)

    def process(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """The scores plus the biases."""
        ids_RP, values_RP = self._state
        return scores_BV.scatter_add(1, ids_RP[rows], values_RP[rows])

    def process_drafted(self, scores_NV: torch.Tensor, drafted: DraftedPositions) -> torch.Tensor:
        """The scores plus the biases."""
        ids_RP, values_RP = self._state
        return scores_NV.scatter_add(1, ids_RP[drafted.rows_N], values_RP[drafted.rows_N])


class RepetitionPenalty(LogitsProcessor):
    """Makes tokens of prompt and answer less likely (CTRL, Keskar et al. 2019, as in transformers)."""

    def is_needed(self, sampling: Sampling) -> bool:
        """Whether the penalty changes anything."""
        return sampling.repetition_penalty != 1

    def make_state(self) -> tuple[torch.Tensor, ...]:
        """The penalty [R, 1], 1 where there is none, and whether each token was seen [R, V]."""
        return self._zeros(1, torch.float) + 1, self._zeros(self._vocabulary_size, torch.bool)

    def clear(self, row: int) -> None:
        """Make a row neutral."""
        penalty_R1, seen_RV = self._state
        penalty_R1[row], seen_RV[row] = 1, False

    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Write the penalty, and mark the tokens of the prompt as seen."""
        penalty_R1, seen_RV = self._state
        penalty_R1[row] = sampling.repetition_penalty
        # The embedding may have tokens that the output layer lacks: those of images, for instance.
        known = [token for token in prompt_ids if token < self._vocabulary_size]
        seen_RV[row, torch.tensor(known, dtype=torch.long).to(self._device)] = True

    def process(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Seen tokens: positive scores are divided by the penalty, negative ones multiplied by it."""
        penalty_R1, seen_RV = self._state
        return _penalize_seen(scores_BV, penalty_R1[rows], seen_RV[rows])

    def process_drafted(self, scores_NV: torch.Tensor, drafted: DraftedPositions) -> torch.Tensor:
        """As `process`, with the drafted tokens before each position as seen, too."""
        penalty_R1, seen_RV = self._state
        seen_NV = seen_RV[drafted.rows_N]
        earlier_NW, is_earlier_NW = drafted.earlier_drafts()
        added_NV = torch.zeros_like(seen_NV, dtype=torch.int32)
        added_NV.scatter_add_(1, earlier_NW, is_earlier_NW.to(torch.int32))
        return _penalize_seen(scores_NV, penalty_R1[drafted.rows_N], seen_NV | (added_NV > 0))

    def update(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Mark the tokens as seen."""
        seen_BV = self._state[1][rows]
        seen_BV.scatter_(1, tokens_B[:, None], seen_BV.gather(1, tokens_B[:, None]) | active_B[:, None])

    def update_drafted(
        self, tokens_BT: torch.Tensor, is_made_BT: torch.Tensor, drafted: DraftedPositions
    ) -> None:
        """Mark the tokens as seen."""
        # In the place of those that were not made stands the first, which was: one value for each element.
        self._state[1][drafted.rows_B[:, None], tokens_BT.where(is_made_BT, tokens_BT[:, :1])] = True


class FrequencyPenalties(LogitsProcessor):
    """OpenAI's presence and frequency penalties. They count the tokens of the answer, not of the prompt."""

    def is_needed(self, sampling: Sampling) -> bool:
        """Whether either penalty changes anything."""
        return bool(sampling.presence_penalty or sampling.frequency_penalty)

    def make_state(self) -> tuple[torch.Tensor, ...]:
        """Presence and frequency penalty [R, 2], and the count of each token in the answer [R, V]."""
        return self._zeros(2, torch.float), self._zeros(self._vocabulary_size, torch.int32)

    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Write the penalties; all counts are 0."""
        penalties_R2, _counts_RV = self._state
        penalties_R2[row, 0] = sampling.presence_penalty
        penalties_R2[row, 1] = sampling.frequency_penalty

    def process(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Subtract the presence penalty where a token was made, and the frequency penalty times its count."""
        penalties_R2, counts_RV = self._state
        return _subtract_penalties(scores_BV, penalties_R2[rows], counts_RV[rows])

    def process_drafted(self, scores_NV: torch.Tensor, drafted: DraftedPositions) -> torch.Tensor:
        """As `process`, with the drafted tokens before each position as made, too."""
        penalties_R2, counts_RV = self._state
        earlier_NW, is_earlier_NW = drafted.earlier_drafts()
        # Indexed by a tensor, the counts are a copy.
        counts_NV = counts_RV[drafted.rows_N].scatter_add_(1, earlier_NW, is_earlier_NW.to(torch.int32))
        return _subtract_penalties(scores_NV, penalties_R2[drafted.rows_N], counts_NV)

    def update(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Add one to the count of each token."""
        self._state[1][rows].scatter_add_(1, tokens_B[:, None], active_B[:, None].to(torch.int32))

    def update_drafted(
        self, tokens_BT: torch.Tensor, is_made_BT: torch.Tensor, drafted: DraftedPositions
    ) -> None:
        """Add one to the count of each token that was made."""
        rows_BT = drafted.rows_B[:, None].expand_as(tokens_BT)
        self._state[1].index_put_((rows_BT, tokens_BT), is_made_BT.to(torch.int32), accumulate=True)


class GrammarMask(LogitsProcessor):
    """Sets the scores of tokens that a row's grammar does not allow to -inf. The host sets the mask."""

    def is_needed(self, sampling: Sampling) -> bool:
        """False: a new row has no mask until `set_mask`."""
        return False

    def make_state(self) -> tuple[torch.Tensor, ...]:
        """The forbidden tokens, a bit each [R, W]."""
        return (self._zeros(-(-self._vocabulary_size // _WORD_BITS), torch.int32),)

    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Nothing to write: `set_mask` sets the row."""

    def set_mask(self, row: int, allowed_W: torch.Tensor) -> None:
        """Allow only these tokens, a bit each. Words missing at the end allow none."""
        self._allocate()
        self._is_used[row] = True
        self._state[0][row] = self._forbidden(allowed_W)

    def process(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """The scores with -inf for forbidden tokens."""
        return self._hide(scores_BV, self._state[0][rows])

    def process_drafted(self, scores_NV: torch.Tensor, drafted: DraftedPositions) -> torch.Tensor:
        """The same scores: each position has a mask of its own, which `hide` applies."""
        return scores_NV

    def hide(self, scores_NV: torch.Tensor, allowed: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The scores with -inf for what is not allowed at these positions, by index in N."""
        if not allowed:
            return scores_NV
        width = -(-self._vocabulary_size // _WORD_BITS)
        forbidden_NW = torch.zeros(len(scores_NV), width, dtype=torch.int32, device=self._device)
        for index, allowed_W in allowed.items():
            forbidden_NW[index] = self._forbidden(allowed_W)
        return self._hide(scores_NV, forbidden_NW)

    def _forbidden(self, allowed_W: torch.Tensor) -> torch.Tensor:
        """The bits of all tokens that are not allowed, on the device."""
        width = -(-self._vocabulary_size // _WORD_BITS)
        missing = max(0, width - len(allowed_W))
        return functional.pad(~allowed_W[:width], (0, missing), value=-1).to(self._device)

    def _hide(self, scores_BV: torch.Tensor, forbidden_BW: torch.Tensor) -> torch.Tensor:
        bits = torch.arange(_WORD_BITS, dtype=torch.int32, device=self._device)
        forbidden_BV = (forbidden_BW[:, :, None] >> bits & 1).flatten(1)[:, : self._vocabulary_size]
        return scores_BV.masked_fill(forbidden_BV.bool(), -torch.inf)


def _penalize_seen(scores_BV: torch.Tensor, penalty_B1: torch.Tensor, seen_BV: torch.Tensor) -> torch.Tensor:
    penalized_BV = torch.where(scores_BV < 0, scores_BV * penalty_B1, scores_BV / penalty_B1)
    return torch.where(seen_BV, penalized_BV, scores_BV)


def _subtract_penalties(
    scores_BV: torch.Tensor, penalties_B2: torch.Tensor, counts_BV: torch.Tensor
) -> torch.Tensor:
    presence_B1, frequency_B1 = penalties_B2.split(1, dim=1)
    return scores_BV - presence_B1 * (counts_BV > 0) - frequency_B1 * counts_BV
