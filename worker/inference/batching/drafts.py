"""Drafts of an answer's next tokens: what followed its last tokens where they occurred before.

Prompt lookup decoding (Saxena 2023; transformers' `prompt_lookup_num_tokens`, vLLM's n-gram proposer). An
occurrence is followed for as long as the answer repeats it, so that the length of the match is known: the
longer it is, the likelier is the next token. Every token of the answer is compared with what was expected,
whether it was drafted or not: how often a request's drafts would be accepted is known before any is verified,
and costs the device nothing. Knows no torch.
"""

from bisect import bisect_right
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# An occurrence is found by so many tokens.
_NGRAM = 3
# Of a longer prompt only the end is searched: the index takes about 150 bytes a token.
_MAX_INDEXED = 32_768
# Lengths of a match from which the next token has a probability of its own, and what is assumed of it before
# anything is measured. The first is of a match that a single other token has interrupted.
_LENGTHS = (0, 3, 5, 8, 12, 20)
_ASSUMED = (0.3, 0.45, 0.6, 0.75, 0.85, 0.92)
# The assumption counts as much as so many tokens of the answer.
_ASSUMED_WEIGHT = 4.0
# The weight of a token of the answer shrinks by this factor with each later one of its kind.
_DECAY = 0.95
# A prediction is trusted as a match of this length is.
_PREDICTED_LENGTH = 8
# Shorter matches are not continued after a token that differs.
_RESUMED_LENGTH = 4


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next; `allowed`: with a grammar, its masks before each of them and after the last.

    The masks are those of `Matcher.allowed_tokens`.
    """

    token_ids: Listed[int] = ()
    allowed: "Listed[npt.NDArray[np.int32]]" = ()


@dataclass
class _Tally:
    """How often the expected token came."""

    hits: float = 0.0
    count: float = 0.0

    def add(self, is_hit: bool) -> None:
        self.hits = self.hits * _DECAY + is_hit
        self.count = self.count * _DECAY + 1


@dataclass(frozen=True)
class Expected:
    """Tokens that may come next, and the probability that all tokens up to each one come."""

    token_ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)


class NgramDrafts:
    """The text of one sequence, and the earlier occurrence of its last tokens, if there is one."""

    def __init__(self, prompt_ids: Listed[int], predicted_ids: Listed[int] = ()) -> None:
        """`predicted_ids`: a text that the answer is expected to begin with, and to repeat in large part."""
        self._ids = ids = [*prompt_ids, *predicted_ids][-_MAX_INDEXED:]
        # The index after the last occurrence of each n-gram, without the one that ends the text.
        grams = zip(ids, ids[1:], ids[2:], strict=False)
        self._after: dict[tuple[int, ...], int] = dict(zip(grams, range(_NGRAM, len(ids)), strict=False))
        self._tallies = [_Tally() for _ in _LENGTHS]
        self._next = 0
        self._matched = 0
        self._search()
        if predicted_ids and len(ids) > len(predicted_ids):
            self._next, self._matched = len(ids) - len(predicted_ids), _PREDICTED_LENGTH

    @property
    def has_match(self) -> bool:
        """Whether there is an earlier occurrence of the last tokens."""
        return self._next > 0

    def add(self, token_id: int) -> None:
        """Add a token of the answer, and find the occurrence that it continues."""
        ids = self._ids
        is_expected = self._next > 0 and ids[self._next] == token_id
        if self._next:
            self._tallies[_kind(self._matched)].add(is_expected)
        if len(ids) >= _NGRAM:
            self._after[ids[-3], ids[-2], ids[-1]] = len(ids)
        ids.append(token_id)
        if is_expected:
            self._next += 1
            self._matched += 1
            return
        passed, matched = self._next, self._matched
        self._search()
        if not self._next and passed and matched >= _RESUMED_LENGTH:
            # One token may stand in the place of another, as where a name was changed.
            self._next, self._matched = passed + 1, 0

    def expect(self, count: int) -> Expected:
        """At most `count` tokens that may come next."""
        if not self._next:
            return Expected()
        token_ids = self._ids[self._next : self._next + count]
        # Where the occurrence reaches the end of the text, the text repeats itself.
        period = len(self._ids) - self._next
        while len(token_ids) < count:
            token_ids.append(token_ids[-period])
        probability, probabilities = 1.0, []
        for length in range(self._matched, self._matched + count):
            probability *= self._probability(length)
            probabilities.append(probability)
        return Expected(token_ids, probabilities)

    def _search(self) -> None:
        """Find the last occurrence of the last tokens."""
        self._next = self._after.get(tuple(self._ids[-_NGRAM:]), 0)
        self._matched = self._match_length() if self._next else 0

    def _match_length(self) -> int:
        """How many tokens before the occurrence's end equal the last ones of the text."""
        ids, length = self._ids, _NGRAM
        while length < min(self._next, _LENGTHS[-1]) and ids[self._next - 1 - length] == ids[-1 - length]:
            length += 1
        return length

    def _probability(self, length: int) -> float:
        """The probability of the next token after a match of this length."""
        kind = _kind(length)
        tally = self._tallies[kind]
        return (tally.hits + _ASSUMED[kind] * _ASSUMED_WEIGHT) / (tally.count + _ASSUMED_WEIGHT)


def _kind(length: int) -> int:
    return bisect_right(_LENGTHS, length) - 1
