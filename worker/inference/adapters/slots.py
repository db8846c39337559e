"""Which adapters occupy which slots of the stacked LoRA weights. Unused ones are evicted, oldest use first.

A step computes all slots up to the highest in use, so adapters in use are to have the lowest slots. Slot 0
means no adapter. Knows no torch; `lora_weights.py` holds the weights.
"""

from collections import Counter, OrderedDict
from collections.abc import Set
from dataclasses import dataclass


def count_computed(highest: int, count: int) -> int:
    """How many of `count` slots a step computes whose highest is `highest`: the next power of two, or all.

    So there are few numbers, each of which has CUDA graphs of its own. 0: no token has an adapter.
    """
    return min(count, 1 << (highest - 1).bit_length()) if highest else 0


@dataclass(frozen=True)
class Pin:
    """A slot that is not evicted until it is unpinned as often as it was pinned."""

    slot: int
    # Whether the adapter's weights are not in the slot yet.
    must_load: bool


@dataclass(frozen=True)
class SlotSwap:
    """The adapter in `source`, which is in use, changes places with the idle one in `target`, if any."""

    source: int
    target: int


class AdapterSlots:
    """Assigns the slots 1 to `count` to adapters."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._pins: Counter[str] = Counter()

    @property
    def resident(self) -> list[str]:
        """Ids of the adapters in slots, the least recently used first."""
        return list(self._slots)

    def can_pin(self, adapter_id: str | None) -> bool:
        """Whether `pin` would succeed."""
        return adapter_id is None or adapter_id in self._slots or self._pinned_count < self.count

    def pin(self, adapter_id: str | None) -> Pin:
        """Pin the adapter's slot; assigns the least recently used unpinned one if it has none."""
        if adapter_id is None:
            return Pin(slot=0, must_load=False)
        must_load = adapter_id not in self._slots
        if must_load:
            self._slots[adapter_id] = self._free_slot()
        self._slots.move_to_end(adapter_id)
        self._pins[adapter_id] += 1
        return Pin(slot=self._slots[adapter_id], must_load=must_load)

    def unpin(self, adapter_id: str | None) -> None:
        """Undo one `pin`."""
        if adapter_id is not None:
            self._pins[adapter_id] -= 1

    def replace_idle(self, adapter_id: str) -> int | None:
        """Evict the least recently used unpinned adapter, and move this one to its slot.

        Returns the slot, or None where every adapter is pinned.
        """
        oldest = self._oldest_idle()
        if oldest is None:
            return None
        self._slots[adapter_id] = self._slots.pop(oldest)
        return self._slots[adapter_id]

    def find_swap(self, wanted: Set[str]) -> SlotSwap | None:
        """The swap that leads to fewer computed slots; None where these adapters need as many as now.

        `wanted`: the adapters of requests that wait; they will be in use, too. There may be several swaps to
        make, one after another.
        """
        pinned = {adapter_id: slot for adapter_id, slot in self._slots.items() if self._pins[adapter_id] > 0}
        highest = max(pinned.values(), default=0)
        needed = count_computed(len(wanted | pinned.keys()), self.count)
        if needed >= count_computed(highest, self.count):
            return None
        return SlotSwap(highest, min(set(range(1, highest)) - set(pinned.values())))

    def swap(self, swap: SlotSwap) -> None:
        """Record that the adapters of two slots have changed places."""
        places = {swap.source: swap.target, swap.target: swap.source}
        self._slots = OrderedDict((name, places.get(slot, slot)) for name, slot in self._slots.items())

    def forget(self, adapter_id: str) -> None:
        """Free the slot of an adapter that could not be loaded."""
        del self._slots[adapter_id]
        del self._pins[adapter_id]

    def clear(self) -> None:
        """Free all slots."""
        self._slots.clear()
        self._pins.clear()

    @property
    def _pinned_count(self) -> int:
        return sum(pins > 0 for pins in self._pins.values())

    def _free_slot(self) -> int:
        if len(self._slots) >= self.count:
            oldest = self._oldest_idle()
            assert oldest is not None
            return self._slots.pop(oldest)
        return min(set(range(1, self.count + 1)) - set(self._slots.values()))

    def _oldest_idle(self) -> str | None:
        return next((adapter_id for adapter_id in self._slots if not self._pins[adapter_id]), None)
