"""Drafts are verified where that is faster, and no answer is made more than 3% slower by it."""

import random

import pytest

from tests.worker.inference.fakes import make_sequence
from worker.inference.batching.drafts import Draft
from worker.inference.batching.model_batch import Capacity
from worker.inference.batching.speculation import Speculation, Timed

CAPACITY = Capacity(8, 999, 10_000, verified_positions=64, draftable_ids=5_000)
PROMPT = [random.Random(0).randrange(1, 5_000) for _ in range(400)]


class Simulation:
    """Rows that make the tokens of their scripts, and steps whose durations are given by their positions."""

    def __init__(self, cost, scripts, prompt=PROMPT, *, speculates=True):
        self.speculation = Speculation(CAPACITY, is_asynchronous=False)
        self.cost, self.speculates = cost, speculates
        self.now = 0.0
        self.ended_at = [0.0] * len(scripts)
        self.scripts = {}
        for row, script in enumerate(scripts):
            sequence = make_sequence(token_ids=list(prompt), max_new_tokens=len(script))
            sequence.row, sequence.prefilled_count = row, len(prompt)
            self.scripts[sequence] = script

    def run(self):
        """Returns the seconds until each row has all its tokens."""
        while running := [one for one in self.scripts if len(one.token_ids) < len(self.scripts[one])]:
            drafts = self.speculation.choose(running) if self.speculates else {}
            positions = len(running) + sum(len(draft.token_ids) for draft in drafts.values())
            seconds = self.cost(len(running), positions)
            self.now += seconds
            made = {one: self._advance(one, drafts.get(one, Draft())) for one in running}
            self.speculation.record(Timed(made, drafts, seconds, overlaps=False))
        return self.ended_at

    def _advance(self, sequence, draft):
        made = len(sequence.token_ids)
        coming = self.scripts[sequence][made : made + len(draft.token_ids) + 1]
        assert len(coming) == len(draft.token_ids) + 1
        count = 1
        while count < len(coming) and coming[count - 1] == draft.token_ids[count - 1]:
            count += 1
        for token in coming[:count]:
            sequence.token_ids.append(token)
            self.speculation.add(sequence, token)
        self.ended_at[sequence.row] = self.now
        return count


def quoting(length=300):
    """The prompt's text with another token now and then."""
    rng = random.Random(1)
    return [rng.randrange(1, 5_000) if rng.random() < 0.04 else token for token in PROMPT[50 : 50 + length]]


def unlike(length=300):
    rng = random.Random(2)
    return [rng.randrange(1, 5_000) for _ in range(length)]


def misleading(length=300):
    """Parts of three to nine tokens of the prompt, each of which goes on differently."""
    rng = random.Random(3)
    text = []
    while len(text) < length:
        start = rng.randrange(300)
        text += [*PROMPT[start : start + rng.randint(3, 9)], rng.randrange(1, 5_000)]
    return text[:length]


def turning(length=300):
    """Quotes first, and never again."""
    return quoting(length // 3) + misleading(length - length // 3)


SCRIPTS = {"quoting": quoting, "unlike": unlike, "misleading": misleading, "turning": turning}
COSTS = {
    # Seconds of a step by rows and positions: bound by memory, by computation, and in between.
    "flat": lambda rows, positions: 0.01,
    "proportional": lambda rows, positions: 0.01 * positions,
    "between": lambda rows, positions: 0.01 + 0.001 * positions,
    "with a gap": lambda rows, positions: 0.01 * (1 if positions == rows else 1.6),
}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_one_answer_is_never_slower(script, cost):
    text = SCRIPTS[script]()
    plain = Simulation(COSTS[cost], [text], speculates=False).run()

    assert Simulation(COSTS[cost], [text]).run()[0] <= 1.03 * plain[0]


@pytest.mark.parametrize("cost", ["flat", "between", "with a gap"])
def test_an_answer_that_quotes_is_much_faster(cost):
    plain = Simulation(COSTS[cost], [quoting()], speculates=False).run()

    assert Simulation(COSTS[cost], [quoting()]).run()[0] < plain[0] / 1.8


def test_a_measurement_that_was_interrupted_is_made_again():
    text = [*quoting(), *quoting(), *quoting()]
    plain = Simulation(COSTS["flat"], [text], speculates=False).run()
    # Other work on the machine makes the first verifying steps ten times slower.
    slow = iter([0.1] * 4)

    def cost(rows, positions):
        return next(slow, 0.01) if positions > rows else 0.01

    assert Simulation(cost, [text]).run()[0] < plain[0] / 1.5


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("others", [1, 3, 15])
def test_others_in_the_batch_are_not_slower(others, cost):
    texts = [quoting(), *([unlike(), misleading(), turning()] * 5)[:others]]
    plain = Simulation(COSTS[cost], texts, speculates=False).run()
    found = Simulation(COSTS[cost], texts).run()

    assert all(seconds <= 1.03 * before for seconds, before in zip(found, plain, strict=True))


def test_a_batch_of_answers_that_quote_is_faster():
    texts = [quoting()] * 4
    plain = Simulation(COSTS["between"], texts, speculates=False).run()

    assert max(Simulation(COSTS["between"], texts).run()) < max(plain) / 1.5


def test_steps_with_more_positions_than_the_model_verifies_are_plain():
    simulation = Simulation(COSTS["flat"], [quoting(100)] * 64)

    assert simulation.run() == Simulation(COSTS["flat"], [quoting(100)] * 64, speculates=False).run()


def ready_speculation(answer, *, is_asynchronous=False, prompt=PROMPT, **options):
    """A speculation that knows what steps of one row take, and a sequence that has made this answer."""
    speculation = Speculation(CAPACITY, is_asynchronous=is_asynchronous)
    sequence = make_sequence(token_ids=list(prompt), **options)
    sequence.row, sequence.prefilled_count = 0, len(prompt)
    for token in answer:
        sequence.token_ids.append(token)
        speculation.add(sequence, token)
        speculation.record(Timed({sequence: 1}, {}, 1.0, overlaps=is_asynchronous))
    return speculation, sequence


def test_a_draft_leaves_a_token_to_make():
    speculation, sequence = ready_speculation(PROMPT[:30], max_new_tokens=33)

    assert len(speculation.choose([sequence])[sequence].token_ids) == 2


def test_a_draft_has_neither_ends_nor_tokens_that_the_model_lacks():
    for odd in (0, 5_000):
        prompt = [*range(1, 40), odd, *range(41, 90)]
        speculation, sequence = ready_speculation(prompt[:37], prompt=prompt, max_new_tokens=99)

        assert speculation.choose([sequence])[sequence].token_ids == [38, 39]


def test_nothing_is_verified_for_a_while_after_an_error():
    speculation, sequence = ready_speculation(PROMPT[:30], max_new_tokens=3_000)
    speculation.pause()

    assert not speculation.choose([sequence])
    for _ in range(1_000):
        speculation.record(Timed({sequence: 1}, {}, 1.0, overlaps=False))
    assert speculation.choose([sequence])


def test_tokens_in_flight_are_read_early_only_for_a_draft_that_pays():
    for answer, pays in ((PROMPT[:30], True), (unlike(30), False)):
        speculation, sequence = ready_speculation(answer, is_asynchronous=True, max_new_tokens=99)

        assert speculation.wants_host([sequence]) is pays


def test_plain_steps_that_could_not_overlap_count_as_time_lost():
    speculation, sequence = ready_speculation(PROMPT[:30], is_asynchronous=True, max_new_tokens=99)
    for _ in range(3):
        speculation.record(Timed({sequence: 1}, {}, 3.0, overlaps=False))
        # They say nothing about those that overlap.
    for _ in range(9):
        speculation.record(Timed({sequence: 1}, {sequence: Draft([7])}, 2.0, overlaps=False))

    assert not speculation.wants_host([sequence])
