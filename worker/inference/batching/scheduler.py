"""Decides which sequences run and which base models are loaded. Knows no torch and no clock.

Each loaded base model has its own batch. A request for another base model waits until it can be loaded: as a
further one while fewer than `max_base_models` are loaded, else in place of one whose batch has drained.
"""

from collections import Counter, deque
from dataclasses import dataclass

from app.core.engine.messages import BaseModelRef
from app.core.errors import QueueFull
from worker.inference.adapters.slots import Pin
from worker.inference.batching.model_batch import Capacity, ModelBatch
from worker.inference.batching.sequence import Sequence

# How many later sequences may start before the first one in the queue, where that one needs more memory, an
# adapter slot or another base model. It bounds both the waiting and the number of switches.
_MAX_PASSED_OVER = 8


@dataclass(frozen=True)
class Started:
    """A sequence that was given a row in a batch, and the pinned slot of its adapter."""

    sequence: Sequence
    batch: ModelBatch
    pin: Pin


@dataclass(frozen=True)
class Switch:
    """A base model to load now, and the drained batch whose base model is unloaded for it, if any."""

    wanted: BaseModelRef
    leaving: ModelBatch | None


class Scheduler:
    """The queue of waiting sequences, and the batches, least recently used first."""

    def __init__(self, *, max_waiting: int, adapter_slot_count: int, max_base_models: int = 1) -> None:
        self.waiting: deque[Sequence] = deque()
        self.batches: list[ModelBatch] = []
        self.max_waiting = max_waiting
        self._adapter_slot_count = adapter_slot_count
        self.max_base_models = max_base_models
        # Keys of the base model that is being loaded, and of one that lacked memory while others were loaded.
        self._loading: str | None = None
        self._too_large: str | None = None

    @property
    def running(self) -> list[Sequence]:
        """The sequences of all batches."""
        return [sequence for batch in self.batches for sequence in batch.running]

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue. Raises QueueFull."""
        if len(self.waiting) >= self.max_waiting:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting already.", hint="Try again in a few seconds."
            )
        self.waiting.append(sequence)

    def batch_of(self, sequence: Sequence) -> ModelBatch | None:
        """The batch that a sequence runs in."""
        return next((batch for batch in self.batches if batch.is_running(sequence)), None)

    def is_served(self, sequence: Sequence) -> bool:
        """Whether the base model that a sequence needs is loaded."""
        return self._batch_for(sequence.base_key) is not None

    def waiting_counts(self) -> Counter[str]:
        """The number of waiting sequences by the key of their base model."""
        return Counter(sequence.base_key for sequence in self.waiting)

    def wanted_adapters(self, batch: ModelBatch) -> set[str]:
        """Ids of the adapters that waiting sequences need in this batch."""
        waiting = (one for one in self.waiting if one.base_key == batch.base_key)
        return {sequence.adapter_id for sequence in waiting if sequence.adapter_id is not None}

    def next_switch(self) -> Switch | None:
        """The base model to load now, or None. At most one is loaded at a time."""
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
        """Record that the switch's base model is being loaded, and drop the batch that it replaces."""
        self._loading, self._too_large = switch.wanted.key, None
        if switch.leaving is not None:
            self.close(switch.leaving)

    def open(self, base_model: BaseModelRef, capacity: Capacity) -> ModelBatch:
        """Add the batch of a base model that is loaded now, without adapters."""
        self._loading = None
        batch = ModelBatch(base_model, capacity, adapter_slot_count=self._adapter_slot_count)
        self.batches.append(batch)
        return batch

    def give_up_loading(self, *, lacks_memory: bool) -> bool:
        """Record that loading failed. Returns whether to try again once another base model was unloaded."""
        loading, self._loading = self._loading, None
        if lacks_memory and self.batches:
            self._too_large = loading
            return True
        return False

    def take_general_path(self, base_key: str, reason: str) -> None:
        """Let the sequences that wait for a base model on the paged path wait for it on the general path."""
        for sequence in self.waiting:
            if sequence.base_key == base_key:
                sequence.take_general_path(reason)

    def close(self, batch: ModelBatch) -> None:
        """Drop the empty batch of a base model that is no longer loaded."""
        assert not batch.running
        self.batches.remove(batch)

    def start_next(self) -> Started | None:
        """Start the next sequence that fits, in the order of the queue where possible; None if none fits."""
        claimant = self._claimant()
        leaving = None
        if claimant is not None and self._loading is None and not self._has_place_for(claimant):
            leaving = self._leaving(claimant)
        for batch in list(self.batches):
            started = self._start_on(batch, claimant if batch is leaving else None)
            if started is not None:
                return started
        return None

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence from the queue."""
        self.waiting.remove(sequence)

    def _start_on(self, batch: ModelBatch, claimant: Sequence | None) -> Started | None:
        """Start a waiting sequence in this batch. `claimant` waits in the queue for the batch to drain."""
        if batch.is_full:
            return None
        passed_over = None
        for sequence in self.waiting:
            if sequence is not claimant and sequence.base_key != batch.base_key:
                continue
            pin = batch.start(sequence) if sequence is not claimant else None
            if pin is not None:
                if passed_over is not None:
                    passed_over.passed_over_count += 1
                self.waiting.remove(sequence)
                # The batch becomes the most recently used.
                self.batches.remove(batch)
                self.batches.append(batch)
                return Started(sequence, batch, pin)
            passed_over = passed_over or sequence
            if passed_over.passed_over_count >= _MAX_PASSED_OVER:
                return None
        return None

    def _claimant(self) -> Sequence | None:
        """The first sequence in the queue whose base model is neither loaded nor being loaded."""
        known = {batch.base_key for batch in self.batches} | {self._loading}
        return next((sequence for sequence in self.waiting if sequence.base_key not in known), None)

    def _has_place_for(self, claimant: Sequence) -> bool:
        is_too_large = claimant.base_key == self._too_large and bool(self.batches)
        return len(self.batches) < self.max_base_models and not is_too_large

    def _leaving(self, claimant: Sequence) -> ModelBatch:
        """The batch that should drain: one that is empty, or else the least recently used."""
        assert claimant.base_key not in {batch.base_key for batch in self.batches}
        return next((batch for batch in self.batches if not batch.running), self.batches[0])

    def _batch_for(self, base_key: str) -> ModelBatch | None:
        return next((batch for batch in self.batches if batch.base_key == base_key), None)
