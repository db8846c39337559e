"""Runs the batch of one loaded base model: a step reads chunks of prompts and makes a token per sequence.

On an asynchronous device (a GPU) the next step is launched before the tokens of the last one are read: the
device computes while the host makes text. A sequence that turns out to be finished has then made a token too
many, which is dropped. Where a step of several sequences fails, each is computed alone, so that an error ends
only the sequence that it comes from. Knows no torch: the model is behind the protocol `Runner`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.core.engine.messages import Reply
from app.core.errors.engine import PromptTooLong
from app.core.errors.jobs import OutOfMemory
from worker.inference.batching.embedding import HiddenSum
from worker.inference.batching.model_batch import Capacity, ModelBatch, Move, Prefill
from worker.inference.batching.scheduler import Started
from worker.inference.batching.sequence import AdapterHandle, SampledToken, Sequence
from worker.inference.batching.step_limit import StepLimit
from worker.inference.failures import failed

_log = logging.getLogger(__name__)

Put = Callable[[Sequence, Reply], None]


class PendingTokens(Protocol):
    """The tokens of a step that the device may still be computing."""

    def to_host(self) -> list[SampledToken]:
        """The tokens by row. Waits for the device."""


class Runner(Protocol):
    """A loaded base model. Any method may raise; no row has advanced after an error of `prefill` or `decode`.

    `prefill` returns the sums of hidden states for chunks of texts whose embeddings are wanted.
    `decode_alone` computes one sequence where `decode` has failed for the batch.
    """

    capacity: Capacity
    # Bits per weight of the large layers.
    weight_bits: int
    # Whether `decode` returns before the tokens are computed.
    is_asynchronous: bool

    def load_adapter(self, slot: int, adapter: AdapterHandle) -> None: ...
    def start(self, sequence: Sequence) -> None: ...
    def prefill(self, prefills: list[Prefill]) -> list[HiddenSum | None]: ...
    def decode(self, running: list[Sequence]) -> PendingTokens: ...
    def decode_alone(self, sequence: Sequence) -> PendingTokens: ...
    def move(self, move: Move) -> None: ...
    def free(self, row: int) -> None: ...
    def is_usable(self) -> bool: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class _InFlight:
    """A launched step whose tokens were not read yet; `places`: of each sequence in it."""

    pending: PendingTokens
    places: list[tuple[int, Sequence]]


class RunnerBroken(Exception):
    """The device failed for good; only a new process can use it again."""


class BatchExecutor:
    """Runs one batch on the model of one runner. Replies are passed to `put`."""

    def __init__(self, batch: ModelBatch, runner: Runner, put: Put, clock: Callable[[], float]) -> None:
        self.batch = batch
        self.runner = runner
        self._put = put
        self._clock = clock
        self._limit = StepLimit()
        self._in_flight: list[_InFlight] = []

    @property
    def step_seconds(self) -> float:
        """How long the next step may take before it counts as frozen."""
        return self._limit.of(self._step_tokens)

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self.batch.running) or bool(self._in_flight)

    def start(self, started: Started) -> None:
        """Load the adapter where needed and start a sequence that the scheduler has given a row.

        A prompt that is too long, or an error of the runner, fails this sequence only.
        """
        sequence, adapter = started.sequence, started.sequence.prompt.adapter
        try:
            _check_length(sequence, self.batch.capacity)
            if started.pin.must_load and adapter is not None:
                self._load_adapter(sequence, adapter)
            self.runner.start(sequence)
        except Exception as error:
            self.fail(sequence, error)
            if started.pin.must_load and adapter is not None:
                self.batch.slots.forget(adapter.id)
            return
        sequence.start()

    def _load_adapter(self, sequence: Sequence, adapter: AdapterHandle) -> None:
        """Load the adapter of a sequence. Idle ones are evicted in turn while memory for it is short."""
        slots = self.batch.slots
        while True:
            try:
                self.runner.load_adapter(sequence.adapter_slot, adapter)
                return
            except OutOfMemory:
                slot = slots.replace_idle(adapter.id)
                if slot is None:
                    raise
            # After the handler, so that the error no longer refers to what was being loaded.
            sequence.adapter_slot = slot

    def step(self) -> None:
        """Launch a step of the model and deliver the tokens of the step before. Raises RunnerBroken."""
        token_count, began_at = self._step_tokens, self._clock()
        self._step()
        self._limit.record(token_count, self._clock() - began_at)

    @property
    def _step_tokens(self) -> int:
        """The number of tokens that the next step reads and makes."""
        return len(self.batch.running) + sum(prefill.token_count for prefill in self.batch.prefills())

    def _step(self) -> None:
        if any(sequence.needs_host for sequence in self.batch.running):
            self._collect()
        launched = self._launch()
        self._collect()
        self._in_flight = launched
        if not self.runner.is_asynchronous:
            self._collect()

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence with an error reply and remove it."""
        self._put(sequence, failed(error))
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence from the batch and free its row on the device."""
        move = self.batch.remove(sequence)
        if move is not None:
            self.runner.move(move)
        self.runner.free(len(self.batch.running))

    def close(self) -> None:
        """Free the model's memory on the device."""
        self._in_flight.clear()
        self.runner.close()

    def _launch(self) -> list[_InFlight]:
        """Read chunks of prompts, then launch a token for every sequence whose prompt is read."""
        self._prefill()
        running = list(self.batch.running)
        ready = [sequence for sequence in running if sequence.is_prefilled]
        if not ready:
            return []
        try:
            places = [(sequence.row, sequence) for sequence in ready]
            return [_InFlight(self.runner.decode(running), places)]
        except Exception as error:
            self._check_usable(error)
            if len(running) == 1:
                self.fail(ready[0], error)
                return []
            _log.warning("A step of %d sequences failed; computing each alone: %s", len(running), error)
        # One that fails is removed at once, and another sequence then moves into its row.
        return [launched for sequence in ready if (launched := self._launch_alone(sequence)) is not None]

    def _launch_alone(self, sequence: Sequence) -> _InFlight | None:
        try:
            return _InFlight(self.runner.decode_alone(sequence), [(0, sequence)])
        except Exception as error:
            self._fail_after_error(sequence, error)
            return None

    def _prefill(self) -> None:
        prefills = self.batch.prefills()
        if not prefills:
            return
        try:
            read = list(zip(prefills, self.runner.prefill(prefills), strict=True))
        except Exception as error:
            self._check_usable(error)
            if len(prefills) == 1:
                self.fail(prefills[0].sequence, error)
                return
            _log.warning("Chunks of %d prompts failed; reading each alone: %s", len(prefills), error)
            read = [one for prefill in prefills for one in self._prefill_alone(prefill)]
        for prefill, hidden_sum in read:
            prefill.sequence.add_read(prefill.token_count, hidden_sum)
            self.batch.commit(prefill.sequence)
        for sequence in [prefill.sequence for prefill, _ in read]:
            if sequence.prompt.embeds and sequence.is_prefilled:
                self._finish_embedding(sequence)

    def _prefill_alone(self, prefill: Prefill) -> list[tuple[Prefill, HiddenSum | None]]:
        """Read a chunk of one prompt. Returns it, or nothing where its sequence has failed."""
        try:
            (hidden_sum,) = self.runner.prefill([prefill])
        except Exception as error:
            self._fail_after_error(prefill.sequence, error)
            return []
        return [(prefill, hidden_sum)]

    def _finish_embedding(self, sequence: Sequence) -> None:
        try:
            finished = sequence.finish_embedding()
        except Exception as error:
            self._fail_after_error(sequence, error)
            return
        self._put(sequence, finished)
        self.remove(sequence)

    def _collect(self) -> None:
        """Read the tokens of the step in flight. Sequences that were removed since are skipped."""
        in_flight, self._in_flight = self._in_flight, []
        for one in in_flight:
            try:
                tokens = one.pending.to_host()
            except Exception as error:
                for _, sequence in one.places:
                    if self.batch.is_running(sequence):
                        self._fail_after_error(sequence, error)
                continue
            for place, sequence in one.places:
                if self.batch.is_running(sequence):
                    self._add(sequence, tokens[place])

    def _add(self, sequence: Sequence, token: SampledToken) -> None:
        try:
            deltas = sequence.add_token(token)
            finished = sequence.finished() if sequence.finish_reason is not None else None
        except Exception as error:
            self.fail(sequence, error)
            return
        for delta in deltas:
            self._put(sequence, delta)
        if finished is not None:
            self._put(sequence, finished)
            self.batch.commit(sequence)
            self.remove(sequence)

    def _fail_after_error(self, sequence: Sequence, error: Exception) -> None:
        """Fail this sequence. Raises RunnerBroken where the device is no longer usable."""
        self._check_usable(error)
        self.fail(sequence, error)

    def _check_usable(self, error: Exception) -> None:
        if not self.runner.is_usable():
            raise RunnerBroken from error


def _check_length(sequence: Sequence, capacity: Capacity) -> None:
    if not sequence.fits(capacity.max_length):
        raise PromptTooLong.of(
            len(sequence.prompt.token_ids),
            capacity.max_length,
            capacity.context_length,
            has_answer=not sequence.prompt.embeds,
        )
