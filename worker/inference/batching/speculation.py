"""Decides which rows of a step verify drafted tokens: where that makes the batch faster and no row slower.

What a draft gains follows from how often such tokens came in this answer (`drafts.py`), what it costs from
the measured times of steps (`step_costs.py`). An account for each sequence holds by how much it is behind
plain decoding: a step is only verified while no row would fall behind by more than a small share of its own
time. Where drafts are never right, nothing is verified. Knows no torch.
"""

from collections.abc import Mapping, Sequence as Listed
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from worker.inference.batching.drafts import Draft, Expected, NgramDrafts
from worker.inference.batching.model_batch import Capacity
from worker.inference.batching.sequence import Sequence
from worker.inference.batching.step_costs import StepCosts

# Drafted tokens of a row; all rows of a step have the same limit of these.
_LIMITS = (1, 2, 3, 5, 7, 11, 15)
# The limit while no verifying step was measured.
_FIRST_LIMIT = 2
# A drafted token less probable than this is not verified.
_LEAST_PROBABILITY = 0.15
# The rate of tokens must grow by this factor: less is not worth what times that vary may cost.
_LEAST_GAIN = 1.15
# By this share of its time may a row be behind plain decoding.
_MAX_LOSS = 0.02
# A row can't save up more than so many steps that it was ahead.
_MAX_CREDIT_STEPS = 10
# After so many verifying steps the time of plain ones is measured again: it changes with the texts' length.
_PLAIN_EVERY = 32
# A step counts as so many times longer than expected at most: the first of a size is captured as a graph, and
# other work on the machine interrupts some, with drafts or without.
_MAX_SURPRISE = 3
# After an error nothing is verified for so many steps.
_STEPS_AFTER_ERROR = 1000


@dataclass
class _Account:
    """The drafts of a sequence, and its time in seconds: behind plain decoding, and what that would take."""

    drafts: NgramDrafts
    behind: float = 0.0
    plain: float = 0.0

    def charge(self, seconds: float, tokens: int, plain_seconds: float) -> None:
        """Add a step that took so long and made so many tokens."""
        self.plain += tokens * plain_seconds
        self.behind = max(self.behind + seconds - tokens * plain_seconds, -_MAX_CREDIT_STEPS * plain_seconds)

    def allows(self, seconds: float, tokens: float, plain_seconds: float) -> bool:
        """Whether a step of this duration, expected to make so many tokens, leaves the row fast enough."""
        return self.behind + seconds - tokens * plain_seconds <= _MAX_LOSS * self.plain


@dataclass(frozen=True)
class Timed:
    """A step of the device: its sequences, what was verified, and its duration.

    `made`: tokens by sequence. `overlaps`: it and the step after it were each launched before the tokens of
    the one before were read.
    """

    made: Mapping[Sequence, int]
    drafts: Mapping[Sequence, Draft]
    seconds: float
    overlaps: bool

    @property
    def positions(self) -> int:
        """The positions that the step has computed."""
        return len(self.made) + sum(len(draft.token_ids) for draft in self.drafts.values())


class Speculation:
    """The drafts of all sequences of one batch, and what steps cost there."""

    def __init__(self, capacity: Capacity, *, is_asynchronous: bool) -> None:
        self._capacity = capacity
        self._is_asynchronous = is_asynchronous
        self._costs = StepCosts()
        self._accounts: WeakKeyDictionary[Sequence, _Account] = WeakKeyDictionary()
        self._steps_to_wait = 0

    def add(self, sequence: Sequence, token_id: int) -> None:
        """Record a token of an answer."""
        account = self._accounts.get(sequence)
        if account is None:
            self._accounts[sequence] = account = _Account(
                NgramDrafts(sequence.prompt.token_ids, sequence.prompt.predicted_ids)
            )
            for earlier in sequence.token_ids[:-1]:
                account.drafts.add(earlier)
        account.drafts.add(token_id)

    def wants_host(self, running: Listed[Sequence]) -> bool:
        """Whether to read the tokens in flight before the next step: a draft would probably pay.

        Judged by the tokens that the host has, one less than the rows have made.
        """
        return bool(self._choose(running))

    def choose(self, running: Listed[Sequence]) -> dict[Sequence, Draft]:
        """What to verify in the next step, by sequence; nothing where that does not pay.

        The host must know all tokens.
        """
        found = {}
        for sequence, token_ids in self._choose(running).items():
            draft = sequence.allowed_draft(token_ids)
            if draft.token_ids:
                found[sequence] = draft
        return found

    def record(self, step: Timed) -> None:
        """Record a step whose tokens were read."""
        self._steps_to_wait = max(0, self._steps_to_wait - 1)
        sequences = list(step.made)
        overlaps = self._overlaps(sequences)
        is_plain = not step.drafts and step.overlaps == overlaps
        if is_plain:
            self._costs.add_plain(len(sequences), step.seconds, overlaps=overlaps)
        plain_seconds = self._costs.plain(len(sequences), overlaps=overlaps)
        # A plain step is no loss. One whose tokens were read early, only for a draft, may be.
        expected = plain_seconds or 0.0
        if step.drafts:
            expected = self._costs.verifying(step.positions, len(sequences), expected)
            self._costs.add_verifying(step.positions, step.seconds)
        if plain_seconds is None:
            return
        seconds = plain_seconds if is_plain else min(step.seconds, _MAX_SURPRISE * expected)
        for sequence, tokens in step.made.items():
            if (account := self._accounts.get(sequence)) is not None:
                account.charge(seconds, tokens, plain_seconds)

    def pause(self) -> None:
        """Verify nothing for a while, after an error."""
        self._steps_to_wait = _STEPS_AFTER_ERROR

    def _choose(self, running: Listed[Sequence]) -> dict[Sequence, list[int]]:
        if self._steps_to_wait or len(running) >= self._capacity.verified_positions:
            return {}
        ready = [one for one in running if one.is_prefilled]
        expected = {one: found for one in ready if (found := self._expect(one)).token_ids}
        limit = self._limit(ready, expected) if expected else 0
        return {one: found.token_ids[:limit] for one, found in expected.items()} if limit else {}

    def _expect(self, sequence: Sequence) -> Expected:
        account = self._accounts.get(sequence)
        # A draft of all tokens that are left would leave none to sample.
        left = sequence.max_length - sequence.length - 1
        if account is None or not account.drafts.has_match or left < 1:
            return Expected()
        found = account.drafts.expect(min(left, _LIMITS[-1]))
        count = sum(one >= _LEAST_PROBABILITY for one in found.probabilities)
        for index, token_id in enumerate(found.token_ids[:count]):
            if token_id in sequence.prompt.end_ids or token_id >= self._capacity.draftable_ids:
                count = index
                break
        return Expected(found.token_ids[:count], found.probabilities[:count])

    def _limit(self, ready: Listed[Sequence], expected: Mapping[Sequence, Expected]) -> int:
        """The number of drafted tokens of a row at which the batch is fastest; 0: without any."""
        overlaps = self._overlaps(ready)
        plain_seconds = self._costs.plain(len(ready), overlaps=overlaps)
        if not plain_seconds or self._costs.plain_age(len(ready), overlaps=overlaps) >= _PLAIN_EVERY:
            return 0
        best, best_rate = 0, _LEAST_GAIN * len(ready) / plain_seconds
        for limit in _LIMITS:
            if limit > _FIRST_LIMIT and not self._costs.has_verifying:
                break
            drafted = sum(len(one.token_ids[:limit]) for one in expected.values())
            if len(ready) + drafted > self._capacity.verified_positions:
                break
            gains = {one: sum(found.probabilities[:limit]) for one, found in expected.items()}
            seconds = self._costs.verifying(len(ready) + drafted, len(ready), plain_seconds)
            rate = (len(ready) + sum(gains.values())) / seconds
            if rate > best_rate and self._allow(ready, gains, seconds, plain_seconds):
                best, best_rate = limit, rate
        return best

    def _allow(
        self, ready: Listed[Sequence], gains: Mapping[Sequence, float], seconds: float, plain_seconds: float
    ) -> bool:
        """Whether no row falls behind too far by a step of this duration."""
        for sequence in ready:
            account, tokens = self._accounts.get(sequence), 1 + gains.get(sequence, 0.0)
            if account is None:
                if seconds > tokens * plain_seconds:
                    return False
            elif not account.allows(seconds, tokens, plain_seconds):
                return False
        return True

    def _overlaps(self, sequences: Listed[Sequence]) -> bool:
        """Whether plain steps of these sequences are launched before the tokens before them are read."""
        return self._is_asynchronous and not any(one.needs_host for one in sequences)
