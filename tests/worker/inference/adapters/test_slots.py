"""Slots of adapters: the least recently used is evicted, pinned ones stay."""

from worker.inference.adapters.slots import AdapterSlots, Pin, SlotSwap, count_computed


def test_the_bare_base_needs_no_slot():
    assert AdapterSlots(1).pin(None) == Pin(slot=0, must_load=False)


def test_an_adapter_is_loaded_once():
    slots = AdapterSlots(2)

    assert [slots.pin("a"), slots.pin("a")] == [Pin(1, must_load=True), Pin(1, must_load=False)]


def test_least_recently_used_adapter_is_evicted():
    slots = AdapterSlots(2)
    for adapter_id in ("a", "b", "a"):
        slots.pin(adapter_id)
        slots.unpin(adapter_id)

    assert slots.pin("c") == Pin(2, must_load=True)
    assert slots.resident == ["a", "c"]


def test_pinned_adapter_is_never_evicted():
    slots = AdapterSlots(2)
    slots.pin("a")
    slots.pin("b")
    slots.unpin("b")

    slots.pin("c")

    assert slots.resident == ["a", "c"]


def test_nothing_can_be_pinned_while_every_slot_is_pinned():
    slots = AdapterSlots(1)
    slots.pin("a")

    assert not slots.can_pin("b")
    assert slots.can_pin("a")
    assert slots.can_pin(None)


def test_slot_of_a_failed_load_is_free_again():
    slots = AdapterSlots(1)
    slots.pin("a")

    slots.forget("a")

    assert slots.pin("b") == Pin(1, must_load=True)


def test_slots_are_computed_up_to_the_next_power_of_two():
    assert [count_computed(highest, 6) for highest in range(7)] == [0, 1, 2, 4, 4, 6, 6]


def make_pinned(slots: AdapterSlots, *pinned: str) -> None:
    """Adapters `1` to `8` in their slots, of which these are in use."""
    for slot in range(1, slots.count + 1):
        slots.pin(str(slot))
    for slot in range(1, slots.count + 1):
        if str(slot) not in pinned:
            slots.unpin(str(slot))


def test_the_highest_adapter_in_use_changes_places_with_the_lowest_idle_one():
    slots = AdapterSlots(8)
    make_pinned(slots, "1", "5", "7")
    swaps = []
    while (swap := slots.find_swap(set())) is not None:
        swaps.append(swap)
        slots.swap(swap)

    assert swaps == [SlotSwap(7, 2), SlotSwap(5, 3)]
    assert [slots.pin(name) for name in "1752"] == [Pin(slot, must_load=False) for slot in (1, 2, 3, 7)]


def test_an_adapter_stays_where_as_many_slots_would_be_computed():
    slots = AdapterSlots(8)
    make_pinned(slots, "1", "2", "4")

    assert slots.find_swap(set()) is None


def test_an_adapter_stays_while_requests_that_wait_will_use_as_many_slots():
    slots = AdapterSlots(8)
    make_pinned(slots, "1", "4")

    assert slots.find_swap({"2"}) is None
    assert slots.find_swap({"1"}) == SlotSwap(4, 2)
