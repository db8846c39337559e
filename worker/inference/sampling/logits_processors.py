"""What changes a row's scores before a token is chosen: bias, penalties, a grammar's mask. All on the device.

Each edit computes nothing in a step where no row asks for it, and takes memory only once one has asked.
Shape letters: R all rows, B rows of a step, V vocabulary, P pairs of a row's bias, W words of 32 bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from app.core.engine.messages import MAX_LOGIT_BIAS, Sampling

_WORD_BITS = 32


class ScoreEdit(ABC):
    """State over all rows, neutral in the rows that do not ask."""

    def __init__(self, max_rows: int, vocabulary_size: int, device: torch.device) -> None:
        self._max_rows = max_rows
        self._vocabulary_size = vocabulary_size
        self._device = device
        self._asks = [False] * max_rows
        self._state: tuple[torch.Tensor, ...] = ()

    def set_row(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """A sequence begins in this row."""
        self._asks[row] = self.is_asked(sampling)
        if self._asks[row]:
            self._allocate()
        if self._state:
            self.clear(row)
        if self._asks[row]:
            self.fill(row, sampling, prompt_ids)

    def move(self, source: int, target: int) -> None:
        """The sequence of one row goes on in another."""
        if self._asks[source] or self._asks[target]:
            for tensor in self._state:
                tensor[target] = tensor[source]
        self._asks[target], self._asks[source] = self._asks[source], False

    def apply(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """The scores of these rows, changed where a row asks."""
        return self.edit(scores_BV, rows) if any(self._asks[rows]) else scores_BV

    def count(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Remember what active rows have made, where a row needs that."""
        if any(self._asks[rows]):
            self.take(tokens_B, rows, active_B)

    def _allocate(self) -> None:
        if not self._state:
            self._state = self.make_state()

    def _zeros(self, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(self._max_rows, width, dtype=dtype, device=self._device)

    @abstractmethod
    def is_asked(self, sampling: Sampling) -> bool:
        """Whether these settings need the edit."""

    @abstractmethod
    def make_state(self) -> tuple[torch.Tensor, ...]:
        """Tensors whose first dimension is the row, neutral everywhere."""

    def clear(self, row: int) -> None:
        """Make a row neutral."""
        for tensor in self._state:
            tensor[row] = 0

    @abstractmethod
    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Give a neutral row its settings."""

    @abstractmethod
    def edit(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """The scores, changed; those that came in stay as they are."""

    def take(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Remember what was made; nothing, where that makes no difference."""
        return


class LogitBias(ScoreEdit):
    """A number is added to the scores of the tokens that a row names."""

    def is_asked(self, sampling: Sampling) -> bool:
        """Whether any token is named."""
        return bool(sampling.logit_bias)

    def make_state(self) -> tuple[torch.Tensor, ...]:
        """Token ids and what is added to each; rows with fewer pairs add nothing to token 0."""
        return self._zeros(MAX_LOGIT_BIAS, torch.long), self._zeros(MAX_LOGIT_BIAS, torch.float)

    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Tokens that the model does not have are passed over: a tokenizer may know more of them."""
        pairs = [
            (token, bias) for token, bias in sampling.logit_bias.items() if token < self._vocabulary_size
        ]
        ids_RP, values_RP = self._state
        ids_RP[row, : len(pairs)] = torch.tensor([token for token, _ in pairs], dtype=torch.long)
        values_RP[row, : len(pairs)] = torch.tensor([bias for _, bias in pairs], dtype=torch.float)

    def edit(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Add."""
        ids_RP, values_RP = self._state
        return scores_BV.scatter_add(1, ids_RP[rows], values_RP[rows])


class Repetitions(ScoreEdit):
    """What prompt and answer have said becomes less likely (CTRL, Keskar et al. 2019, as in transformers)."""

    def is_asked(self, sampling: Sampling) -> bool:
        """Whether the penalty changes anything."""
        return sampling.repetition_penalty != 1

    def make_state(self) -> tuple[torch.Tensor, ...]:
        """The penalty less one, and which tokens were seen."""
        return self._zeros(1, torch.float), self._zeros(self._vocabulary_size, torch.bool)

    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """The prompt was seen."""
        excess_R1, seen_RV = self._state
        excess_R1[row] = sampling.repetition_penalty - 1
        seen_RV[row, torch.tensor(prompt_ids, dtype=torch.long).to(self._device)] = True

    def edit(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Positive scores are divided by the penalty, negative ones multiplied."""
        excess_R1, seen_RV = self._state
        penalty_B1 = excess_R1[rows] + 1
        penalized_BV = torch.where(scores_BV < 0, scores_BV * penalty_B1, scores_BV / penalty_B1)
        return torch.where(seen_RV[rows], penalized_BV, scores_BV)

    def take(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """Seen once is seen for good."""
        seen_BV = self._state[1][rows]
        seen_BV.scatter_(1, tokens_B[:, None], seen_BV.gather(1, tokens_B[:, None]) | active_B[:, None])


class Frequencies(ScoreEdit):
    """OpenAI's presence and frequency penalties: over the tokens made, not over the prompt."""

    def is_asked(self, sampling: Sampling) -> bool:
        """Whether either penalty changes anything."""
        return bool(sampling.presence_penalty or sampling.frequency_penalty)

    def make_state(self) -> tuple[torch.Tensor, ...]:
        """Presence and frequency penalty, and how often each token was made."""
        return self._zeros(2, torch.float), self._zeros(self._vocabulary_size, torch.int32)

    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Nothing is made yet."""
        penalties_R2, _counts_RV = self._state
        penalties_R2[row, 0] = sampling.presence_penalty
        penalties_R2[row, 1] = sampling.frequency_penalty

    def edit(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Less the presence penalty once, and the frequency penalty as often as the token was made."""
        presence_B1, frequency_B1 = self._state[0][rows].split(1, dim=1)
        counts_BV = self._state[1][rows]
        return scores_BV - presence_B1 * (counts_BV > 0) - frequency_B1 * counts_BV

    def take(self, tokens_B: torch.Tensor, rows: slice, active_B: torch.Tensor) -> None:
        """One more of each."""
        self._state[1][rows].scatter_add_(1, tokens_B[:, None], active_B[:, None].to(torch.int32))


class Grammar(ScoreEdit):
    """Tokens that a row's grammar does not allow next are impossible. The mask is the host's to set."""

    def is_asked(self, sampling: Sampling) -> bool:
        """A new row has no mask."""
        return False

    def make_state(self) -> tuple[torch.Tensor, ...]:
        """What is forbidden, a bit each."""
        return (self._zeros(-(-self._vocabulary_size // _WORD_BITS), torch.int32),)

    def fill(self, row: int, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        """Nothing: see set_mask."""

    def set_mask(self, row: int, allowed_W: torch.Tensor) -> None:
        """Allow these tokens from now on. Words that are missing at the end allow nothing."""
        self._allocate()
        self._asks[row] = True
        forbidden_RW = self._state[0]
        words = min(len(allowed_W), forbidden_RW.shape[1])
        forbidden_RW[row, :words] = ~allowed_W[:words].to(self._device)
        forbidden_RW[row, words:] = -1

    def edit(self, scores_BV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Minus infinity."""
        bits = torch.arange(_WORD_BITS, dtype=torch.int32, device=self._device)
        forbidden_BV = (self._state[0][rows, :, None] >> bits & 1).flatten(1)[:, : self._vocabulary_size]
        return scores_BV.masked_fill(forbidden_BV.bool(), -torch.inf)
