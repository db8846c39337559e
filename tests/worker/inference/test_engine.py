"""The loop: joins and leaves at every step, errors that hurt only their own, pause, stop."""

import threading
from dataclasses import replace

import pytest

from app.core.errors import InvalidRequest, OutOfMemory
from app.core.messages import Failed, Finished
from tests.worker.inference.fakes import END, FakeRunner, Mailbox, make_base, make_capacity, make_sequence
from worker.inference.batch import RunnerBroken
from worker.inference.engine import Engine, Options
from worker.inference.scheduler import Scheduler
from worker.inference.sequence import Sequence


class Bench:
    """An engine on fake runners, its mailbox, and a clock that is set by hand."""

    def __init__(self, *, max_waiting: int = 99, slots: int = 2, max_lanes: int = 1) -> None:
        self.runner = FakeRunner()
        # One for each base model, where they should not share `runner`.
        self.runners: dict[str, FakeRunner] = {}
        # Base models that take until told.
        self.slow: dict[str, threading.Event] = {}
        self.changes = 0
        self.bases: list[str] = []
        self.load_errors: list[Exception] = []
        self.mail = Mailbox()
        self.scheduler = Scheduler(max_waiting=max_waiting, adapter_slot_count=slots, max_lanes=max_lanes)
        self.now = 0.0
        self.engine = Engine(
            self._load,
            self.mail.deliver,
            self.scheduler,
            clock=lambda: self.now,
            options=Options(switch_wait_seconds=100, on_change=self._changed),
        )

    def _changed(self):
        self.changes += 1

    def _load(self, base):
        if base.name in self.slow:
            self.slow[base.name].wait()
        if self.load_errors:
            raise self.load_errors.pop()
        self.bases.append(base.name)
        return self.runners.get(base.name, self.runner)

    def submit(self, script=(), **options):
        sequence = make_sequence(**options)
        self.runner.scripts[sequence] = list(script)
        self.engine.submit(sequence)
        return sequence

    def finish(self, *sequences):
        for _ in range(200):
            if all(map(self.mail.has_ended, sequences)):
                return
            self.engine.step()
        raise AssertionError("it goes on for ever")

    def finish_all(self, *sequences):
        """As `finish`, also where others run while a thread loads: the test's time-out ends it."""
        while not all(map(self.mail.has_ended, sequences)):
            self.engine.step()


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


def test_cancel_of_what_has_ended_is_nothing(bench):
    sequence = bench.submit()
    bench.finish(sequence)
    bench.engine.cancel(sequence)
    bench.engine.step()

    assert isinstance(bench.mail.end(sequence), Finished)


def test_full_queue_is_busy_with_a_time_to_come_back():
    bench = Bench(max_waiting=1)
    waiting, refused = bench.submit(), bench.submit()
    bench.finish(waiting, refused)

    end = bench.mail.end(refused)
    assert (end.kind, end.code, end.retry_after_seconds) == ("busy", "queue_full", 5)


def test_base_models_take_turns(bench):
    sequences = [bench.submit(base=name) for name in ("one", "two", "one")]
    bench.finish(*sequences)

    assert bench.bases == ["one", "two"]
    assert bench.engine.state.base_model == make_base("two")


def test_base_model_that_does_not_load_fails_those_who_wait_for_it(bench):
    bench.load_errors = [InvalidRequest("no such luck")]
    broken, fine = bench.submit(base="one"), bench.submit(base="two")
    bench.finish(broken, fine)

    assert bench.mail.end(broken).message == "no such luck"
    assert isinstance(bench.mail.end(fine), Finished)


@pytest.fixture
def two_lanes():
    """`one` is loaded and busy; `two` loads until told."""
    bench = Bench(max_lanes=2)
    bench.slow["two"] = threading.Event()
    bench.long = bench.submit(base="one", max_new_tokens=90)
    bench.engine.step()
    yield bench
    bench.slow["two"].set()


def test_other_base_models_make_tokens_while_one_is_loaded(two_lanes):
    other = two_lanes.submit(base="two")
    before = len(two_lanes.long.token_ids)
    for _ in range(10):
        two_lanes.engine.step()

    assert len(two_lanes.long.token_ids) == before + 10
    assert two_lanes.engine.state.loading.base_model == make_base("two")
    assert [(one.base_model.name, one.count) for one in two_lanes.engine.state.waiting] == [("two", 1)]
    two_lanes.slow["two"].set()
    two_lanes.finish_all(other, two_lanes.long)


def test_loaded_base_models_take_steps_in_turn():
    bench = Bench(max_lanes=2)
    one, two = bench.submit(base="one", max_new_tokens=90), bench.submit(base="two", max_new_tokens=90)
    while not (one.token_ids and two.token_ids):
        bench.engine.step()
    before = len(one.token_ids), len(two.token_ids)
    for _ in range(5):
        bench.engine.step()

    assert (len(one.token_ids), len(two.token_ids)) == (before[0] + 5, before[1] + 5)
    assert [base.base_model.name for base in bench.engine.state.bases] == ["one", "two"]


def test_adapters_are_shown_with_their_base_model():
    bench = Bench(max_lanes=2)
    bench.finish_all(bench.submit(base="one", adapter="x"), bench.submit(base="two", adapter="y"))

    assert [base.adapters for base in bench.engine.state.bases] == [["x"], ["y"]]
    assert bench.engine.state.adapters == ["x", "y"]


def test_base_model_that_lacks_memory_beside_others_takes_their_place():
    bench = Bench(max_lanes=2)
    bench.runners["one"] = FakeRunner()
    bench.finish(bench.submit(base="one"))
    bench.load_errors = [OutOfMemory("full")]
    large = bench.submit(base="two")
    bench.finish_all(large)

    assert isinstance(bench.mail.end(large), Finished)
    assert bench.runners["one"].closed
    assert [base.base_model.name for base in bench.engine.state.bases] == ["two"]


def test_base_model_that_lacks_memory_alone_fails_those_who_wait_for_it(bench):
    bench.load_errors = [OutOfMemory("full")]
    large = bench.submit(base="two")
    bench.finish(large)

    end = bench.mail.end(large)
    assert (end.kind, end.code) == ("unavailable", "out_of_memory")
    assert end.retry_after_seconds


def test_failed_loading_does_not_hurt_those_who_run(two_lanes):
    two_lanes.load_errors = [InvalidRequest("no such luck")]
    broken = two_lanes.submit(base="two")
    two_lanes.engine.step()
    two_lanes.slow["two"].set()
    two_lanes.finish_all(broken, two_lanes.long)

    assert two_lanes.mail.end(broken).message == "no such luck"
    assert two_lanes.mail.text(two_lanes.long) == "a" * 90


def test_wait_for_a_base_model_is_bounded(bench):
    running = bench.submit(base="one", max_new_tokens=90)
    bench.engine.step()
    other = bench.submit(base="two")
    bench.engine.step()
    assert not bench.mail.has_ended(other)
    bench.now = 100.0
    bench.engine.step()

    end = bench.mail.end(other)
    assert (end.kind, end.code, end.retry_after_seconds) == ("unavailable", "base_model_busy", 30)
    assert "'two'" in end.message
    assert "'one'" in end.message
    assert not bench.mail.has_ended(running)


def test_wait_for_a_row_on_a_loaded_base_model_is_not_bounded(bench):
    bench.runner.capacity = make_capacity(max_rows=1)
    bench.submit(max_new_tokens=90)
    bench.engine.step()
    waiting = bench.submit()
    bench.engine.step()
    bench.now = 1000.0
    bench.engine.step()

    assert not bench.mail.has_ended(waiting)


def test_pause_waits_for_the_base_model_that_is_being_loaded_and_drops_it(two_lanes):
    two_lanes.submit(base="two")
    two_lanes.engine.step()
    paused = two_lanes.engine.pause("job_1")
    two_lanes.engine.cancel(two_lanes.long)
    two_lanes.slow["two"].set()
    while not paused.done():
        two_lanes.engine.step()

    assert two_lanes.bases == ["one", "two"]
    assert two_lanes.engine.state.bases == []


def test_stop_does_not_wait_for_the_base_model_that_is_being_loaded(two_lanes):
    two_lanes.submit(base="two")
    two_lanes.engine.step()
    stopped = two_lanes.engine.stop(grace_seconds=0)
    two_lanes.engine.run()

    assert stopped.done()


def test_what_is_served_is_told_when_it_changes_and_only_then(bench):
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


def test_device_that_is_gone_ends_the_engine_and_everybody_hears_of_it(bench):
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
    assert "100 tokens" in end.message
    assert "99" in end.message


def test_long_prompt_does_not_hold_up_the_others(bench):
    bench.runner.capacity = make_capacity(page_count=10**4, context_length=10**5)
    stream = bench.submit(max_new_tokens=50)
    bench.engine.step()
    bench.submit(prompt_length=5000)
    before = len(stream.token_ids)
    bench.engine.step()

    assert len(stream.token_ids) == before + 1


def test_pause_lets_running_answers_finish_and_refuses_the_rest(bench):
    running = bench.submit(max_new_tokens=5)
    bench.engine.step()
    paused = bench.engine.pause("job_1")
    refused = bench.submit()
    bench.finish(running, refused)
    bench.engine.step()

    assert isinstance(bench.mail.end(running), Finished)
    end = bench.mail.end(refused)
    assert (end.kind, end.code, end.retry_after_seconds) == ("unavailable", "gpu_taken", 30)
    assert "job_1" in end.message
    assert paused.done()
    assert bench.runner.closed
    assert (bench.engine.state.base_model, bench.engine.state.paused_by) == (None, "job_1")


def test_pause_fails_what_still_runs_after_the_grace(bench):
    running = bench.submit(max_new_tokens=90)
    bench.engine.step()
    paused = bench.engine.pause("job_1")
    bench.engine.step()
    assert not paused.done()
    bench.now = 60.0
    bench.engine.step()

    assert bench.mail.end(running).code == "gpu_taken"
    assert paused.done()


def test_resume_serves_again(bench):
    bench.engine.pause("job_1")
    bench.engine.step()
    resumed = bench.engine.resume()
    sequence = bench.submit()
    bench.finish(sequence)

    assert resumed.done()
    assert isinstance(bench.mail.end(sequence), Finished)
    assert bench.engine.state.paused_by is None


def test_stop_ends_the_loop_when_nothing_runs_any_more(bench):
    running = bench.submit(max_new_tokens=5)
    bench.engine.step()
    stopped = bench.engine.stop(grace_seconds=10)
    bench.engine.run()

    assert stopped.done()
    assert isinstance(bench.mail.end(running), Finished)


def test_a_broken_tokenizer_fails_its_own_answer_only(bench):
    broken, fine = bench.submit([1_200_000], max_new_tokens=5), bench.submit()
    bench.finish(broken, fine)

    assert isinstance(bench.mail.end(broken), Failed)
    assert isinstance(bench.mail.end(fine), Finished)


class AnyTokens:
    """A grammar that allows everything."""

    def start(self):
        return self

    def allowed(self):
        return None

    def take(self, token_id):
        pass


class CarefulRunner(FakeRunner):
    """Begins no token for a sequence with a grammar before that knows all tokens so far."""

    def decode(self, running):
        for sequence in running:
            assert not sequence.needs_host or self.launched[sequence] == len(sequence.token_ids)
        return super().decode(running)


def test_a_grammar_knows_the_last_token_before_the_next_is_begun_beside_those_that_have_none(bench):
    bench.runner = CarefulRunner(is_asynchronous=True)
    free = bench.submit(max_new_tokens=20)
    bench.engine.step()
    constrained = Sequence(replace(make_sequence(max_new_tokens=5).prompt, grammar=AnyTokens()))
    bench.engine.submit(constrained)
    bench.finish(free, constrained)

    assert (bench.mail.text(free), bench.mail.text(constrained)) == ("a" * 20, "a" * 5)
