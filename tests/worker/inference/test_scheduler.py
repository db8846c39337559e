"""Who starts, in which row, and that nobody waits for ever."""

import pytest

from app.core.errors import QueueFull
from tests.worker.inference.fakes import make_base, make_sequence
from worker.inference.scheduler import Capacity, Move, Prefill, Scheduler


def make_scheduler(
    *,
    base: str = "base",
    rows: int = 4,
    pages: int = 65,
    slots: int = 2,
    max_waiting: int = 99,
    prefill_tokens: int = 512,
) -> Scheduler:
    scheduler = Scheduler(max_waiting=max_waiting, adapter_slot_count=slots)
    capacity = Capacity(
        max_rows=rows, page_count=pages, context_length=100, prefill_tokens_per_step=prefill_tokens
    )
    scheduler.serve(make_base(base), capacity)
    return scheduler


def start_all(scheduler):
    started = []
    while one := scheduler.start_next():
        started.append(one.sequence)
    return started


def test_rows_are_given_in_the_order_of_arrival():
    scheduler = make_scheduler(rows=2)
    first, second, third = sequences = [make_sequence() for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)

    assert start_all(scheduler) == [first, second]
    assert (first.row, second.row, list(scheduler.waiting)) == (0, 1, [third])


def test_full_queue_is_refused():
    scheduler = make_scheduler(max_waiting=1)
    scheduler.add(make_sequence())

    with pytest.raises(QueueFull):
        scheduler.add(make_sequence())


def test_last_row_moves_into_the_gap():
    scheduler = make_scheduler()
    sequences = [make_sequence() for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    start_all(scheduler)

    assert scheduler.remove(sequences[0]) == Move(source=2, target=0)
    assert scheduler.running == [sequences[2], sequences[1]]
    assert [sequence.row for sequence in scheduler.running] == [0, 1]


def test_memory_bounds_what_all_rows_may_become():
    scheduler = make_scheduler(pages=1 + 5)
    short, long, short_again = (
        make_sequence(max_new_tokens=9),
        make_sequence(max_new_tokens=59),
        make_sequence(max_new_tokens=9),
    )
    for sequence in (short, long, short_again):
        scheduler.add(sequence)

    assert start_all(scheduler) == [short, long]
    scheduler.remove(short)
    assert start_all(scheduler) == [short_again]


def test_another_base_model_waits_until_the_batch_has_drained():
    scheduler = make_scheduler(base="one")
    present, other = make_sequence(base="one"), make_sequence(base="two")
    scheduler.add(present)
    scheduler.add(other)
    start_all(scheduler)

    assert scheduler.wanted_base() is None
    scheduler.remove(present)
    assert scheduler.wanted_base() == make_base("two")


def test_head_that_needs_another_base_is_passed_over_only_so_often():
    scheduler = make_scheduler(base="one", rows=99)
    other = make_sequence(base="two")
    scheduler.add(other)
    for _ in range(50):
        scheduler.add(make_sequence(base="one"))

    assert len(start_all(scheduler)) == 8
    assert scheduler.waiting[0] is other


def test_adapter_waits_while_all_slots_are_in_use():
    scheduler = make_scheduler(slots=1)
    first, second = make_sequence(adapter="a"), make_sequence(adapter="b")
    scheduler.add(first)
    scheduler.add(second)

    assert start_all(scheduler) == [first]
    scheduler.remove(first)
    assert start_all(scheduler) == [second]


def test_long_prompt_is_read_in_pieces_and_its_last_token_is_left():
    scheduler = make_scheduler(prefill_tokens=20)
    long, short = make_sequence(prompt_length=30), make_sequence(prompt_length=5)
    scheduler.add(long)
    scheduler.add(short)
    start_all(scheduler)

    assert scheduler.prefills() == [Prefill(long, 20)]
    long.prefilled_count = 20
    assert scheduler.prefills() == [Prefill(long, 9), Prefill(short, 4)]


def test_what_was_read_is_shared_under_the_same_adapter_only():
    scheduler = make_scheduler(rows=9)
    text = list(range(40))
    first = make_sequence(token_ids=text, adapter="a")
    scheduler.add(first)
    start_all(scheduler)
    first.prefilled_count = 39
    scheduler.learn(first)
    same, other = make_sequence(token_ids=text, adapter="a"), make_sequence(token_ids=text, adapter="b")
    scheduler.add(same)
    scheduler.add(other)
    start_all(scheduler)

    assert (same.prefilled_count, other.prefilled_count) == (32, 0)
    assert same.pages[:2] == first.pages[:2]
    assert not set(same.pages[2:]) & set(first.pages)


def test_waiting_sequence_can_be_removed():
    scheduler = make_scheduler(rows=1)
    first, second = make_sequence(), make_sequence()
    scheduler.add(first)
    scheduler.add(second)
    start_all(scheduler)

    assert scheduler.remove(second) is None
    assert not scheduler.waiting
