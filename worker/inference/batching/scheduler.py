"""Who runs, who waits, and which base models are loaded. Knows no torch and no clock.

Each loaded base model has a lane, its own batch. A request for another base model waits for a free lane, or
until one has drained and makes room.
"""

from collections import Counter, deque
from dataclasses import dataclass

from app.core.engine.messages import BaseModelRef
from app.core.errors import QueueFull
from worker.inference.adapters.slots import Pin
from worker.inference.batching.model_batch import Capacity, Lane
from worker.inference.batching.sequence import Sequence

# So often may others start on a lane before the first in the queue that needs it: its memory, an adapter slot
# or the whole of it for another base model. It bounds both the waiting and the switching to and fro.
_MAX_PASSED_OVER = 8


@dataclass(frozen=True)
class Started:
    """A sequence that was given a row in a lane, and the slot of its adapter."""

    sequence: Sequence
    lane: Lane
    pin: Pin


@dataclass(frozen=True)
class Switch:
    """A base model to load now, and the lane that makes room for it; it has drained."""

    wanted: BaseModelRef
    leaving: Lane | None


class Scheduler:
    """The queue and the lanes, the least recently used lane first."""

    def __init__(self, *, max_waiting: int, adapter_slot_count: int, max_lanes: int = 1) -> None:
        self.waiting: deque[Sequence] = deque()
        self.lanes: list[Lane] = []
        self.max_waiting = max_waiting
        self._adapter_slot_count = adapter_slot_count
        self._max_lanes = max_lanes
        # The base model that is being loaded, and one that did not fit beside the others.
        self._loading: str | None = None
        self._cramped: str | None = None

    @property
    def running(self) -> list[Sequence]:
        """Everything that has a row, in any lane."""
        return [sequence for lane in self.lanes for sequence in lane.running]

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue. Raises QueueFull."""
        if len(self.waiting) >= self.max_waiting:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting already.", hint="Try again in a few seconds."
            )
        self.waiting.append(sequence)

    def lane_of(self, sequence: Sequence) -> Lane | None:
        """Where a sequence runs."""
        return next((lane for lane in self.lanes if lane.is_running(sequence)), None)

    def is_served(self, sequence: Sequence) -> bool:
        """Whether the base model that a sequence needs is loaded."""
        return self._lane(sequence.base_key) is not None

    def waiting_counts(self) -> Counter[str]:
        """How many wait for which base model, by its key."""
        return Counter(sequence.base_key for sequence in self.waiting)

    def next_switch(self) -> Switch | None:
        """What to load now, once its place is free; one base model is loaded at a time."""
        claimant = self._claimant()
        if claimant is None or self._loading is not None:
            return None
        if self._has_place_for(claimant):
            return Switch(claimant.prompt.base_model, None)
        leaving = self._leaving(claimant)
        first = next(one for one in self.waiting if one is claimant or one.base_key == leaving.base_key)
        if leaving.running or first is not claimant:
            return None
        return Switch(claimant.prompt.base_model, leaving)

    def begin_loading(self, switch: Switch) -> None:
        """The switch happens: the lane that leaves is gone, the other one is not there yet."""
        self._loading, self._cramped = switch.wanted.key, None
        if switch.leaving is not None:
            self.close(switch.leaving)

    def open(self, base_model: BaseModelRef, capacity: Capacity) -> Lane:
        """This base model is loaded, without any adapter yet."""
        self._loading = None
        lane = Lane(base_model, capacity, adapter_slot_count=self._adapter_slot_count)
        self.lanes.append(lane)
        return lane

    def give_up_loading(self, *, lacks_memory: bool) -> bool:
        """Loading failed; answers whether it is worth another try, once another base model has made room."""
        loading, self._loading = self._loading, None
        if lacks_memory and self.lanes:
            self._cramped = loading
            return True
        return False

    def close(self, lane: Lane) -> None:
        """This base model is not loaded any more."""
        assert not lane.running
        self.lanes.remove(lane)

    def start_next(self) -> Started | None:
        """Give the next sequence that fits a row, in the order of the queue as far as that goes."""
        claimant = self._claimant()
        leaving = None
        if claimant is not None and self._loading is None and not self._has_place_for(claimant):
            leaving = self._leaving(claimant)
        for lane in list(self.lanes):
            started = self._start_on(lane, claimant if lane is leaving else None)
            if started is not None:
                return started
        return None

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out of the queue."""
        self.waiting.remove(sequence)

    def _start_on(self, lane: Lane, claimant: Sequence | None) -> Started | None:
        """`claimant` waits for the lane to drain."""
        if lane.is_full:
            return None
        passed_over = None
        for sequence in self.waiting:
            if sequence is not claimant and sequence.base_key != lane.base_key:
                continue
            pin = lane.start(sequence) if sequence is not claimant else None
            if pin is not None:
                if passed_over is not None:
                    passed_over.passed_over_count += 1
                self.waiting.remove(sequence)
                # It was used last now.
                self.lanes.remove(lane)
                self.lanes.append(lane)
                return Started(sequence, lane, pin)
            passed_over = passed_over or sequence
            if passed_over.passed_over_count >= _MAX_PASSED_OVER:
                return None
        return None

    def _claimant(self) -> Sequence | None:
        """The first in the queue whose base model is neither loaded nor being loaded."""
        known = {lane.base_key for lane in self.lanes} | {self._loading}
        return next((sequence for sequence in self.waiting if sequence.base_key not in known), None)

    def _has_place_for(self, claimant: Sequence) -> bool:
        is_cramped = claimant.base_key == self._cramped and bool(self.lanes)
        return len(self.lanes) < self._max_lanes and not is_cramped

    def _leaving(self, claimant: Sequence) -> Lane:
        """The lane that should drain: one that has, or else the least recently used."""
        assert claimant.base_key not in {lane.base_key for lane in self.lanes}
        return next((lane for lane in self.lanes if not lane.running), self.lanes[0])

    def _lane(self, base_key: str) -> Lane | None:
        return next((lane for lane in self.lanes if lane.base_key == base_key), None)
