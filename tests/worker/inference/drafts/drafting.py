"""Drafts that are partly right, at random, in place of those that are looked up and found to pay."""

import random
from collections.abc import Callable

import pytest

from worker.inference.batching.sequence import Sequence
from worker.inference.batching.speculation import Speculation

MAX_DRAFTED = 6


class RandomDrafts(Speculation):
    """Drafts for some of the rows: what they will make, with a wrong token somewhere or none."""

    rng: random.Random
    # Another token, and what each sequence will make.
    other: int
    expected: Callable[[Sequence], list[int]]

    def _choose(self, running):
        if self._steps_to_wait:
            return {}
        rows = [one for one in running if one.is_prefilled and self.rng.random() < 0.7]
        drafts = {one: self._draft(one) for one in rows}
        return {one: draft for one, draft in drafts.items() if draft}

    def _draft(self, sequence):
        left = sequence.max_length - sequence.length - 1
        made = len(sequence.token_ids)
        draft = list(self.expected(sequence)[made : made + self.rng.randint(0, MAX_DRAFTED)])[: max(0, left)]
        if draft and self.rng.random() < 0.5:
            draft[self.rng.randrange(len(draft))] = self.other
        return draft


def draft_at_random(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random, expected: Callable[[Sequence], list[int]], other=5
) -> None:
    """Let engines that speculate draft at random."""
    kind = type("Drafts", (RandomDrafts,), {"rng": rng, "other": other, "expected": staticmethod(expected)})
    monkeypatch.setattr("worker.inference.engine.Speculation", kind)
