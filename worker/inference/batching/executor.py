"""Runs the batch of one loaded base model: a step reads chunks of prompts and makes a token per sequence.

On an asynchronous device (a GPU) the next step is launched before the tokens of the last one are read: the
device computes while the host makes text. A sequence that turns out to be finished has then made a token too
many, which is dropped. A step may also verify drafted tokens (speculation.py), where the host knows the last
ones. Where a step of several sequences fails, each is computed alone, so that an error ends
only the sequence that it comes from. Knows no torch: the model is behind the protocol `Runner` (runner.py).
"""

import logging
from collections.abc import Callable, Mapping, Sequence as Listed, Set
from dataclasses import dataclass, field

from app.core.engine.messages import Reply
from app.core.errors.engine import PromptTooLong
from app.core.errors.jobs import OutOfMemory
from worker.inference.batching.counts import StepCounts
from worker.inference.batching.drafts import Draft
from worker.inference.batching.model_batch import Capacity, ModelBatch, Prefill
from worker.inference.batching.prompt import AdapterHandle
from worker.inference.batching.prompt_scores import ChunkRead
from worker.inference.batching.runner import PendingTokens, Runner
from worker.inference.batching.scheduler import Started
from worker.inference.batching.sequence import SampledToken, Sequence
from worker.inference.batching.speculation import Speculation, Timed
from worker.inference.batching.step_limit import StepLimit
from worker.inference.failures import failed

_log = logging.getLogger(__name__)

# Steps in which fewer adapter slots would be enough before adapters change places for it.
_STEPS_BEFORE_SWAP = 32

Put = Callable[[Sequence, Reply], None]


@dataclass(frozen=True)
class _InFlight:
    """A launched step whose tokens were not read yet; `places`: of each sequence's first token in it.

    `is_typical`: it is like any other with these sequences, so that its duration says what others will take.
    `overlaps`: it was launched before the tokens of the step before it were read.
    """

    pending: PendingTokens
    places: list[tuple[int, Sequence]]
    drafts: Mapping[Sequence, Draft] = field(default_factory=dict)
    began_at: float = 0.0
    is_typical: bool = False
    overlaps: bool = False


class RunnerBroken(Exception):
    """The device failed for good; only a new process can use it again."""


class BatchExecutor:
    """Runs one batch on the model of one runner. Replies are passed to `put`."""

    def __init__(
        self,
        batch: ModelBatch,
        runner: Runner,
        put: Put,
        clock: Callable[[], float],
        counts: StepCounts | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.batch = batch
        self._counts = counts or StepCounts()
        self.runner = runner
        self._put = put
        self._clock = clock
        self._limit = StepLimit()
        self._in_flight: list[_InFlight] = []
        self._speculation = speculation
        self._steps_with_spare_slots = 0
        # Steps launched since the last one that read prompts or was computed in parts.
        self._typical_count = 0

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
        self._counts.cached_tokens += sequence.prefilled_count
        sequence.start()

    def _load_adapter(self, sequence: Sequence, adapter: AdapterHandle) -> None:
        """Load the adapter of a sequence. Idle ones are evicted in turn while memory for it is short."""
        slots = self.batch.slots
        while True:
            try:
                self.runner.load_adapter(sequence.adapter_slot, adapter)
                self._counts.adapter_loads += 1
                return
            except OutOfMemory:
                slot = slots.replace_idle(adapter.id)
                if slot is None:
                    raise
            # After the handler, so that the error no longer refers to what was being loaded.
            sequence.adapter_slot = slot

    def compact_slots(self, wanted: Set[str]) -> None:
        """Give an adapter in use a lower slot, where fewer slots have been enough for a while.

        At most one a step. `wanted`: the adapters of requests that wait. Raises RunnerBroken.
        """
        swap = self.batch.slots.find_swap(wanted)
        self._steps_with_spare_slots = 0 if swap is None else self._steps_with_spare_slots + 1
        if swap is None or self._steps_with_spare_slots <= _STEPS_BEFORE_SWAP:
            return
        try:
            is_swapped = self.runner.swap_slots(swap)
        except Exception as error:
            self._check_usable(error)
            _log.warning("Adapters stay in slots higher than they need: %s", error)
            is_swapped = False
        if is_swapped:
            self._typical_count = 0
            self.batch.swap_slots(swap)
        if not is_swapped or self.batch.slots.find_swap(wanted) is None:
            self._steps_with_spare_slots = 0

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
        if self._needs_host():
            self._collect()
        began_at = self._clock()
        launched = self._launch(began_at)
        self._collect(next_began_at=began_at)
        self._in_flight = launched
        if not self.runner.is_asynchronous:
            self._collect()

    def _needs_host(self) -> bool:
        """Whether the next step must wait for the tokens in flight."""
        if any(one.drafts for one in self._in_flight):
            return True
        if any(sequence.needs_host for sequence in self.batch.running):
            return True
        return (
            self._speculation is not None
            and bool(self._in_flight)
            and self._speculation.wants_host(self.batch.running)
        )

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

    def _launch(self, began_at: float) -> list[_InFlight]:
        """Read chunks of prompts, then launch a token for every sequence whose prompt is read."""
        self._typical_count = 0 if self.batch.prefills() else self._typical_count + 1
        self._prefill()
        self._send_reads()
        running = list(self.batch.running)
        ready = [sequence for sequence in running if sequence.is_prefilled]
        if not ready:
            return []
        verifying = self._launch_verifying(running, began_at)
        if verifying is not None:
            return [verifying]
        try:
            places = [(sequence.row, sequence) for sequence in ready]
            pending = self.runner.decode(running)
        except Exception as error:
            self._check_usable(error)
            if len(running) == 1:
                self.fail(ready[0], error)
                return []
            _log.warning("A step of %d sequences failed; computing each alone: %s", len(running), error)
        else:
            is_typical, overlaps = self._typical_count > 1, bool(self._in_flight)
            return [_InFlight(pending, places, {}, began_at, is_typical, overlaps)]
        self._typical_count = 0
        # One that fails is removed at once, and another sequence then moves into its row.
        return [launched for sequence in ready if (launched := self._launch_alone(sequence)) is not None]

    def _launch_verifying(self, running: list[Sequence], began_at: float) -> _InFlight | None:
        """Launch a step that verifies drafted tokens, where that pays; None: nothing was launched."""
        if self._speculation is None or self._in_flight:
            return None
        try:
            drafts = self._speculation.choose(running)
            pending = self.runner.verify(running, drafts) if drafts else None
        except Exception as error:
            self._check_usable(error)
            _log.warning("A step that verifies drafted tokens failed; there are none for a while: %s", error)
            self._speculation.pause()
            return None
        if pending is None:
            return None
        places, first = [], 0
        for sequence in running:
            if sequence.is_prefilled:
                places.append((first, sequence))
                first += 1 + len(drafts.get(sequence, Draft()).token_ids)
        return _InFlight(pending, places, drafts, began_at, is_typical=self._typical_count > 1)

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
        ready = self._ready_to_sample()
        try:
            read = list(zip(prefills, self.runner.prefill(prefills, ready), strict=True))
        except Exception as error:
            self._check_usable(error)
            if len(prefills) == 1 and not ready:
                self.fail(prefills[0].sequence, error)
                return
            _log.warning("Chunks of %d prompts failed; reading each alone: %s", len(prefills), error)
            read = [one for prefill in prefills for one in self._prefill_alone(prefill)]
        for prefill, chunk in read:
            prefill.sequence.add_read(prefill.token_count, chunk)
            self._counts.prompt_tokens += prefill.token_count
            self.batch.commit(prefill.sequence)

    def _ready_to_sample(self) -> list[Sequence]:
        """The sequences whose prompts are read; none where drafts for them may be verified in this step."""
        running = self.batch.running
        if self._speculation is not None and not self._in_flight and self._speculation.wants_host(running):
            return []
        return [one for one in running if one.is_prefilled]

    def _prefill_alone(self, prefill: Prefill) -> list[tuple[Prefill, ChunkRead]]:
        """Read a chunk of one prompt. Returns it, or nothing where its sequence has failed."""
        try:
            (chunk,) = self.runner.prefill([prefill], ready=[])
        except Exception as error:
            self._fail_after_error(prefill.sequence, error)
            return []
        return [(prefill, chunk)]

    def _send_reads(self) -> None:
        """Send what is wanted of prompts that are read, and end the sequences that make no token."""
        for sequence in [one for one in self.batch.running if one.has_unsent_read]:
            try:
                described = sequence.describe_prompt()
                finished = None if sequence.prompt.makes_tokens else sequence.finish_read()
            except Exception as error:
                self._fail_after_error(sequence, error)
                continue
            if described is not None:
                self._put(sequence, described)
            if finished is not None:
                self._put(sequence, finished)
                self.remove(sequence)

    def _collect(self, next_began_at: float | None = None) -> None:
        """Read the tokens of the step in flight. Sequences that were removed since are skipped.

        `next_began_at`: when the next step began to be launched, where that was before.
        """
        in_flight, self._in_flight = self._in_flight, []
        for one in in_flight:
            try:
                tokens = one.pending.to_host()
            except Exception as error:
                for _, sequence in one.places:
                    if self.batch.is_running(sequence):
                        self._fail_after_error(sequence, error)
                continue
            made = {sequence: self._take(one, sequence, place, tokens) for place, sequence in one.places}
            overlaps = next_began_at is not None
            # A step that overlaps with only one of those before and after it is like no other.
            if self._speculation is not None and one.is_typical and one.overlaps == overlaps:
                ended_at = self._clock() if next_began_at is None else next_began_at
                self._speculation.record(Timed(made, one.drafts, ended_at - one.began_at, overlaps=overlaps))

    def _take(self, step: _InFlight, sequence: Sequence, place: int, tokens: Listed[SampledToken]) -> int:
        """Add the tokens of a step, from `place` on, that the sequence has made. Returns their number."""
        count = 1
        if sequence in step.drafts:
            drafted = step.drafts[sequence].token_ids
            while count <= len(drafted) and tokens[place + count - 1].token_id == drafted[count - 1]:
                count += 1
            sequence.drafted_count += len(drafted)
            sequence.accepted_count += count - 1
            self._counts.draft_tokens += len(drafted)
            self._counts.accepted_tokens += count - 1
        for token in tokens[place : place + count]:
            # An end token, a stop string or an error may end it before the last.
            if self.batch.is_running(sequence):
                self._add(sequence, token)
        return count

    def _add(self, sequence: Sequence, token: SampledToken) -> None:
        try:
            deltas = sequence.add_token(token)
            finished = sequence.finished() if sequence.finish_reason is not None else None
        except Exception as error:
            self.fail(sequence, error)
            return
        self._counts.generation_tokens += 1
        # The last token of a prompt is counted with the first one that is made.
        self._counts.prompt_tokens += len(sequence.token_ids) == 1
        for delta in deltas:
            self._put(sequence, delta)
        if finished is None and self._speculation is not None:
            self._speculation.add(sequence, token.token_id)
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
            has_answer=sequence.prompt.makes_tokens,
        )
