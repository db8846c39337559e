"""Logits processors: bias, penalties and a grammar's mask, applied on the device before a token is chosen.

A processor computes nothing in a step where no row uses it, and allocates its state at its first use.
Shape letters: R all rows, B rows of a step, V vocabulary, P pairs of a row's bias, W words of 32 bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from app.core.engine.sampling import MAX_LOGIT_BIAS, Sampling

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

    def apply(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the processed scores of these rows; `scores_BV` itself where no row uses the processor."""
        return self.process(scores_BV, rows) if any(self._is_used[rows]) else scores_BV

    def record(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Record the tokens sampled in the active rows, where a row uses the processor."""
        if any(self._is_used[rows]):
            self.update(tokens_B, rows, active_B)

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
        penalty_B1 = penalty_R1[rows]
        penalized_BV = torch.where(scores_BV < 0, scores_BV * penalty_B1, scores_BV / penalty_B1)
        return torch.where(seen_RV[rows], penalized_BV, scores_BV)

    def update(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Mark the tokens as seen."""
        seen_BV = self._state[1][rows]
        seen_BV.scatter_(1, tokens_B[:, None], seen_BV.gather(1, tokens_B[:, None]) | active_B[:, None])


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
        presence_B1, frequency_B1 = self._state[0][rows].split(1, dim=1)
        counts_BV = self._state[1][rows]
        return scores_BV - presence_B1 * (counts_BV > 0) - frequency_B1 * counts_BV

    def update(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Add one to the count of each token."""
        self._state[1][rows].scatter_add_(1, tokens_B[:, None], active_B[:, None].to(torch.int32))


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
        forbidden_RW = self._state[0]
        words = min(len(allowed_W), forbidden_RW.shape[1])
        forbidden_RW[row, :words] = ~allowed_W[:words].to(self._device)
        forbidden_RW[row, words:] = -1

    def process(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """The scores with -inf for forbidden tokens."""
        bits = torch.arange(_WORD_BITS, dtype=torch.int32, device=self._device)
        forbidden_BV = (self._state[0][rows, :, None] >> bits & 1).flatten(1)[:, : self._vocabulary_size]
        return scores_BV.masked_fill(forbidden_BV.bool(), -torch.inf)
