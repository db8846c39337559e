"""Which sequence starts next, in which row, and that every wait is bounded."""

import pytest

from app.core.errors import QueueFull
from tests.worker.inference.fakes import make_base, make_sequence
from worker.inference.batching.model_batch import Capacity
from worker.inference.batching.scheduler import Scheduler, Switch


def make_scheduler(
    *,
    base: str = "base",
    rows: int = 4,
    blocks: int = 65,
    slots: int = 2,
    max_waiting: int = 99,
    others: tuple[str, ...] = (),
    max_base_models: int = 1,
) -> Scheduler:
    scheduler = Scheduler(max_waiting=max_waiting, adapter_slot_count=slots, max_base_models=max_base_models)
    capacity = Capacity(max_rows=rows, block_count=blocks, context_length=100)
    for name in (base, *others):
        scheduler.open(make_base(name), capacity)
    return scheduler


def add(scheduler, *sequences):
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def remove(scheduler, sequence):
    scheduler.batch_of(sequence).remove(sequence)


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


def test_memory_bounds_the_lengths_of_all_rows_together():
    scheduler = make_scheduler(blocks=1 + 5)
    short, long, short_again = (
        make_sequence(max_new_tokens=9),
        make_sequence(max_new_tokens=59),
        make_sequence(max_new_tokens=9),
    )
    for sequence in (short, long, short_again):
        scheduler.add(sequence)

    assert start_all(scheduler) == [short, long]
    remove(scheduler, short)
    assert start_all(scheduler) == [short_again]


def test_another_base_model_waits_until_the_batch_has_drained():
    scheduler = make_scheduler(base="one")
    present, _other = add(scheduler, make_sequence(base="one"), make_sequence(base="two"))
    start_all(scheduler)

    assert scheduler.next_switch() is None
    remove(scheduler, present)
    assert scheduler.next_switch() == Switch(make_base("two"), leaving=scheduler.batches[0])


def test_another_base_model_is_loaded_while_others_run():
    scheduler = make_scheduler(base="one", max_base_models=2)
    add(scheduler, make_sequence(base="one"), make_sequence(base="two"))
    start_all(scheduler)

    assert scheduler.next_switch() == Switch(make_base("two"), leaving=None)


def test_one_base_model_is_loaded_at_a_time():
    scheduler = make_scheduler(base="one", max_base_models=4)
    add(scheduler, make_sequence(base="two"), make_sequence(base="three"))
    scheduler.begin_loading(scheduler.next_switch())

    assert scheduler.next_switch() is None
    scheduler.open(make_base("two"), scheduler.batches[0].capacity)
    assert scheduler.next_switch() == Switch(make_base("three"), leaving=None)


def test_the_least_recently_used_base_model_is_replaced():
    scheduler = make_scheduler(base="one", others=("two",), max_base_models=2)
    used, *_ = add(scheduler, make_sequence(base="one"))
    start_all(scheduler)
    remove(scheduler, used)
    add(scheduler, make_sequence(base="three"))

    assert scheduler.next_switch().leaving.base_model == make_base("two")


def test_a_busy_batch_does_not_leave_while_another_is_idle():
    scheduler = make_scheduler(base="one", others=("two",), max_base_models=2)
    _running, used = add(scheduler, make_sequence(base="one"), make_sequence(base="two"))
    start_all(scheduler)
    remove(scheduler, used)
    add(scheduler, make_sequence(base="three"))

    assert scheduler.next_switch().leaving.base_model == make_base("two")


def test_only_the_batch_that_should_drain_is_held_back():
    scheduler = make_scheduler(base="one", others=("two",), max_base_models=2, rows=99)
    add(scheduler, make_sequence(base="one"), make_sequence(base="two"))
    start_all(scheduler)
    _other, *late = add(
        scheduler, make_sequence(base="three"), *(make_sequence(base="two") for _ in range(50))
    )

    assert start_all(scheduler) == list(late)


def test_base_model_that_lacked_memory_is_tried_again_in_the_place_of_another():
    scheduler = make_scheduler(base="one", max_base_models=2)
    add(scheduler, make_sequence(base="two"))
    scheduler.begin_loading(scheduler.next_switch())

    assert scheduler.give_up_loading(lacks_memory=True)
    again = scheduler.next_switch()
    assert again == Switch(make_base("two"), leaving=scheduler.batches[0])
    scheduler.begin_loading(again)
    assert not scheduler.give_up_loading(lacks_memory=True)


def test_first_in_the_queue_is_passed_over_a_bounded_number_of_times():
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
    remove(scheduler, first)
    assert start_all(scheduler) == [second]


def test_waiting_sequence_can_be_removed():
    scheduler = make_scheduler(rows=1)
    first, second = make_sequence(), make_sequence()
    scheduler.add(first)
    scheduler.add(second)
    start_all(scheduler)

    scheduler.remove(second)
    assert not scheduler.waiting
