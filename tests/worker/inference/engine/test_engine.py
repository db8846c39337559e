"""The engine's loop: sequences join and leave at any step, errors stay with their sequence, pause, stop."""

from dataclasses import replace

import pytest

from app.core.engine.messages import Failed, Finished
from app.core.errors import InvalidRequest
from app.core.errors.jobs import OutOfMemory
from tests.worker.inference.engine.bench import Bench
from tests.worker.inference.fakes import END, FakeRunner, make_capacity, make_sequence
from worker.inference.adapters.slots import SlotSwap
from worker.inference.batching.executor import _STEPS_BEFORE_SWAP, RunnerBroken
from worker.inference.batching.sequence import NO_TOKEN, Sequence


@pytest.fixture
def bench():
    return Bench()


def test_text_comes_as_it_is_made_and_the_end_last(bench):
    sequence = bench.submit([1, 2, END], max_new_tokens=9)
    bench.finish(sequence)

    assert bench.mail.text(sequence) == "ab"
    assert bench.mail.end(sequence).finish_reason == "stop"


def test_sequences_join_and_leave_while_others_run(bench):
    long = bench.submit(max_new_tokens=20)
    bench.engine.step()
    short = bench.submit([2, END], max_new_tokens=20)
    bench.finish(short)
    assert not bench.mail.has_ended(long)
    bench.finish(long)

    assert (bench.mail.text(short), bench.mail.text(long)) == ("b", "a" * 20)


def test_cancel_frees_the_row_at_once(bench):
    bench.runner.capacity = make_capacity(max_rows=1)
    endless, next_one = bench.submit(max_new_tokens=90), bench.submit()
    bench.engine.step()
    bench.engine.cancel(endless)
    bench.finish(next_one)

    assert not bench.mail.has_ended(endless)
    assert bench.engine.running_count == 0


def test_cancel_after_the_end_changes_nothing(bench):
    sequence = bench.submit()
    bench.finish(sequence)
    bench.engine.cancel(sequence)
    bench.engine.step()

    assert isinstance(bench.mail.end(sequence), Finished)


def test_full_queue_is_busy_with_a_time_to_retry():
    bench = Bench(max_waiting=1)
    waiting, refused = bench.submit(), bench.submit()
    bench.finish(waiting, refused)

    end = bench.mail.end(refused)
    assert (end.kind, end.code, end.retry_after_seconds) == ("busy", "queue_full", 5)


def test_changes_of_what_is_served_are_reported_once(bench):
    bench.finish(bench.submit(base="one", adapter="x"))
    before = bench.changes
    bench.finish(bench.submit(base="one", adapter="y"))
    assert bench.changes == before
    bench.engine.pause("job_1")
    bench.engine.step()

    assert before > 1  # it loads; it is loaded
    assert bench.changes == before + 1


def test_adapters_are_loaded_when_first_asked_for(bench):
    sequences = [bench.submit(adapter=name) for name in ("x", "y", "x")]
    bench.finish(*sequences)

    assert bench.runner.loaded == [(1, "x"), (2, "y")]
    assert bench.engine.state.adapters == ["y", "x"]


def test_adapter_that_does_not_load_fails_alone_and_keeps_no_slot(bench):
    bench.runner.adapter_errors = [InvalidRequest("not a LoRA")]
    broken, fine = bench.submit(adapter="x"), bench.submit(adapter="y")
    bench.finish(broken, fine)

    assert bench.mail.end(broken).kind == "invalid"
    assert bench.engine.state.adapters == ["y"]


def test_failed_step_fails_what_runs_and_the_engine_goes_on(bench):
    bench.runner.decode_errors = [OutOfMemory("full")]
    failing = bench.submit()
    bench.finish(failing)
    later = bench.submit()
    bench.finish(later)

    assert bench.mail.end(failing).code == "out_of_memory"
    assert isinstance(bench.mail.end(later), Finished)


@pytest.mark.parametrize("prompt_length", [1, 20], ids=["in decode", "in prefill"])
@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_a_sequence_that_fails_every_step_fails_alone(bench, prompt_length, is_asynchronous):
    bench.runner.is_asynchronous = is_asynchronous
    earlier = bench.submit([1, 2, 3, 1, 2], max_new_tokens=5)
    bench.engine.step()
    culprit = bench.submit(prompt_length=prompt_length)
    bench.runner.errors_of[culprit] = OutOfMemory("full")
    later = bench.submit([3, 2, 1, END], prompt_length=prompt_length, max_new_tokens=9)
    bench.finish(earlier, culprit, later)

    assert bench.mail.end(culprit).code == "out_of_memory"
    assert (bench.mail.text(earlier), bench.mail.text(later)) == ("abcab", "cba")


def test_a_row_without_a_token_fails_alone(bench):
    broken, fine = bench.submit([1, NO_TOKEN, 1], max_new_tokens=5), bench.submit([2] * 5, max_new_tokens=5)
    bench.finish(broken, fine)

    assert (bench.mail.end(broken).code, bench.mail.text(broken)) == ("scores_not_finite", "a")
    assert bench.mail.text(fine) == "bbbbb"


def test_broken_device_ends_the_engine_and_fails_all_sequences(bench):
    bench.runner.decode_errors, bench.runner.usable = [RuntimeError("illegal address")], False
    sequences = [bench.submit() for _ in range(6)]

    with pytest.raises(RunnerBroken):
        bench.engine.step()

    assert {bench.mail.end(sequence).kind for sequence in sequences} <= {"internal", "unavailable"}


def test_over_long_prompt_is_refused_with_the_numbers(bench):
    sequence = bench.submit(prompt_length=100)
    bench.finish(sequence)

    end = bench.mail.end(sequence)
    assert end.kind == "invalid"
    # The words by which LiteLLM and others tell it from other errors.
    assert end.message.startswith("This model's maximum context length is 100 tokens. However, ")
    assert "has 100 tokens" in end.message


def test_long_prompt_does_not_hold_up_the_others(bench):
    bench.runner.capacity = make_capacity(block_count=10**4, context_length=10**5)
    stream = bench.submit(max_new_tokens=50)
    bench.engine.step()
    bench.submit(prompt_length=5000)
    before = len(stream.token_ids)
    bench.engine.step()

    assert len(stream.token_ids) == before + 1


def test_a_broken_tokenizer_fails_its_own_answer_only(bench):
    broken, fine = bench.submit([1_200_000], max_new_tokens=5), bench.submit()
    bench.finish(broken, fine)

    assert isinstance(bench.mail.end(broken), Failed)
    assert isinstance(bench.mail.end(fine), Finished)


class AnyTokens:
    """A grammar that allows everything."""

    def start(self):
        return self

    def allowed_tokens(self):
        return None

    def accept_token(self, token_id):
        pass


class CarefulRunner(FakeRunner):
    """Asserts that a sequence with a grammar has all its tokens before the next one is launched."""

    def decode(self, running):
        for sequence in running:
            assert not sequence.needs_host or self.launched[sequence] == len(sequence.token_ids)
        return super().decode(running)


def test_a_grammar_gets_each_token_before_the_next_is_launched_in_a_mixed_batch(bench):
    bench.runner = CarefulRunner(is_asynchronous=True)
    free = bench.submit(max_new_tokens=20)
    bench.engine.step()
    constrained = Sequence(replace(make_sequence(max_new_tokens=5).prompt, grammar=AnyTokens()))
    bench.engine.submit(constrained)
    bench.finish(free, constrained)

    assert (bench.mail.text(free), bench.mail.text(constrained)) == ("a" * 20, "a" * 5)


@pytest.fixture
def with_idle_adapters():
    """An engine with four slots for adapters, two of them taken by idle ones."""
    bench = Bench(slots=4)
    for adapter in ("idle-1", "idle-2"):
        bench.finish(bench.submit(adapter=adapter))
    return bench


def test_idle_adapters_are_evicted_while_memory_for_another_is_short(with_idle_adapters):
    bench = with_idle_adapters
    bench.runner.adapter_errors = [OutOfMemory("no memory")] * 2
    sequence = bench.submit(adapter="new")
    bench.finish(sequence)

    assert isinstance(bench.mail.end(sequence), Finished)
    # Each try takes the slot of the adapter that was used the longest ago.
    assert bench.runner.loaded[2:] == [(2, "new")]
    assert sequence.adapter_slot == 2
    assert bench.scheduler.batches[0].slots.resident == ["new"]


def test_adapters_in_use_stay_where_memory_for_another_is_short(with_idle_adapters):
    bench = with_idle_adapters
    bench.runner.adapter_errors = [OutOfMemory("no memory")] * 2
    running = bench.submit(adapter="idle-1", max_new_tokens=20)
    refused = bench.submit(adapter="new")
    bench.finish(running, refused)

    assert isinstance(bench.mail.end(running), Finished)
    assert isinstance(bench.mail.end(refused), Failed)
    assert bench.scheduler.batches[0].slots.resident == ["idle-1"]


def test_an_adapter_that_runs_alone_gets_the_first_slot_after_a_while(with_idle_adapters):
    bench = with_idle_adapters
    bench.runner.capacity = make_capacity(context_length=200)
    sequence = bench.submit(adapter="idle-2", max_new_tokens=90)
    for _ in range(_STEPS_BEFORE_SWAP // 2):
        bench.engine.step()
    assert (sequence.adapter_slot, bench.runner.swaps) == (2, [])
    bench.finish(sequence)

    assert (sequence.adapter_slot, bench.runner.swaps) == (1, [SlotSwap(2, 1)])
    # The idle one is still loaded.
    bench.finish(bench.submit(adapter="idle-1"))
    assert bench.runner.loaded == [(1, "idle-1"), (2, "idle-2")]


def test_adapters_stay_where_they_cannot_change_places(with_idle_adapters):
    bench = with_idle_adapters
    bench.runner.swap_errors = [OutOfMemory("no memory")]
    sequence = bench.submit(adapter="idle-2", max_new_tokens=_STEPS_BEFORE_SWAP + 10)
    bench.finish(sequence)

    assert isinstance(bench.mail.end(sequence), Finished)
    assert (sequence.adapter_slot, bench.runner.swaps, bench.runner.swap_errors) == (2, [], [])
