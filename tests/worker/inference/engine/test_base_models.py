"""Base models are loaded on request, together or in turn, and the wait for them is bounded."""

import queue
import threading

import pytest

from app.core.engine.messages import Finished, ServingPath
from app.core.errors import InvalidRequest
from app.core.errors.jobs import OutOfMemory
from tests.worker.inference.engine.bench import Bench
from tests.worker.inference.fakes import FakeRunner, make_base, make_capacity, make_sequence
from worker.inference.batching.scheduler import Scheduler
from worker.inference.engine import Engine
from worker.inference.failures import ModelUnsupported


@pytest.fixture
def bench():
    return Bench()


def test_base_models_take_turns(bench):
    sequences = [bench.submit(base=name) for name in ("one", "two", "one")]
    bench.finish(*sequences)

    assert bench.bases == ["one", "two"]
    assert bench.engine.state.base_model == make_base("two")


def test_base_model_that_does_not_load_fails_its_waiting_sequences(bench):
    bench.load_errors = [InvalidRequest("no such luck")]
    broken, fine = bench.submit(base="one"), bench.submit(base="two")
    bench.finish(broken, fine)

    assert bench.mail.end(broken).message == "no such luck"
    assert isinstance(bench.mail.end(fine), Finished)


def test_base_model_that_the_paged_engine_can_not_compute_is_loaded_on_the_general_path(bench):
    bench.load_errors = [ModelUnsupported("it has attention sinks")]
    one, two = bench.submit(base="one"), bench.submit(base="one", adapter="x")
    bench.finish(one, two)

    assert bench.paths == [ServingPath.PAGED, ServingPath.GENERAL]
    assert bench.unsupported == [("one", "it has attention sinks")]
    ends = [bench.mail.end(one), bench.mail.end(two)]
    assert [end.timings.path for end in ends] == [ServingPath.GENERAL, ServingPath.GENERAL]
    assert [end.timings.path_reason for end in ends] == ["it has attention sinks"] * 2
    assert bench.engine.state.base_model.path is ServingPath.GENERAL
    assert [(one.base_model, one.path, one.reason) for one in bench.engine.state.served] == [
        ("one", ServingPath.GENERAL, "it has attention sinks")
    ]


def test_base_model_that_fails_on_the_general_path_too_fails_its_sequences(bench):
    bench.load_errors = [ModelUnsupported("nor on this one"), ModelUnsupported("not on this path")]
    sequence = bench.submit(base="one")
    bench.finish(sequence)

    assert bench.mail.end(sequence).message == "nor on this one"


@pytest.fixture
def two_base_models():
    """`one` is loaded and busy; `two` loads until its event is set."""
    bench = Bench(max_base_models=2)
    bench.slow["two"] = threading.Event()
    bench.long = bench.submit(base="one", max_new_tokens=90)
    bench.engine.step()
    yield bench
    bench.slow["two"].set()


def test_other_base_models_make_tokens_while_one_is_loaded(two_base_models):
    other = two_base_models.submit(base="two")
    before = len(two_base_models.long.token_ids)
    for _ in range(10):
        two_base_models.engine.step()

    assert len(two_base_models.long.token_ids) == before + 10
    assert two_base_models.engine.state.loading.base_model == make_base("two")
    assert [(one.base_model.name, one.count) for one in two_base_models.engine.state.waiting] == [("two", 1)]
    two_base_models.slow["two"].set()
    two_base_models.finish_all(other, two_base_models.long)


def test_loaded_base_models_take_steps_in_turn():
    bench = Bench(max_base_models=2)
    one, two = bench.submit(base="one", max_new_tokens=90), bench.submit(base="two", max_new_tokens=90)
    while not (one.token_ids and two.token_ids):
        bench.engine.step()
    before = len(one.token_ids), len(two.token_ids)
    for _ in range(5):
        bench.engine.step()

    assert (len(one.token_ids), len(two.token_ids)) == (before[0] + 5, before[1] + 5)
    assert [base.base_model.name for base in bench.engine.state.bases] == ["one", "two"]


def test_adapters_are_shown_with_their_base_model():
    bench = Bench(max_base_models=2)
    bench.finish_all(bench.submit(base="one", adapter="x"), bench.submit(base="two", adapter="y"))

    assert [base.adapters for base in bench.engine.state.bases] == [["x"], ["y"]]
    assert bench.engine.state.adapters == ["x", "y"]


def test_base_model_that_lacks_memory_while_others_are_loaded_replaces_them():
    bench = Bench(max_base_models=2)
    bench.runners["one"] = FakeRunner()
    bench.finish(bench.submit(base="one"))
    bench.load_errors = [OutOfMemory("full")]
    large = bench.submit(base="two")
    bench.finish_all(large)

    assert isinstance(bench.mail.end(large), Finished)
    assert bench.runners["one"].closed
    assert [base.base_model.name for base in bench.engine.state.bases] == ["two"]


def test_base_model_that_lacks_memory_alone_fails_its_waiting_sequences(bench):
    bench.load_errors = [OutOfMemory("full")]
    large = bench.submit(base="two")
    bench.finish(large)

    end = bench.mail.end(large)
    assert (end.kind, end.code) == ("unavailable", "out_of_memory")
    assert end.retry_after_seconds


def test_failed_loading_does_not_affect_running_sequences(two_base_models):
    two_base_models.load_errors = [InvalidRequest("no such luck")]
    broken = two_base_models.submit(base="two")
    two_base_models.engine.step()
    two_base_models.slow["two"].set()
    two_base_models.finish_all(broken, two_base_models.long)

    assert two_base_models.mail.end(broken).message == "no such luck"
    assert two_base_models.mail.text(two_base_models.long) == "a" * 90


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


def test_pause_waits_for_the_base_model_that_is_being_loaded_and_drops_it(two_base_models):
    two_base_models.submit(base="two")
    two_base_models.engine.step()
    paused = two_base_models.engine.pause("job_1")
    two_base_models.engine.cancel(two_base_models.long)
    two_base_models.slow["two"].set()
    while not paused.done():
        two_base_models.engine.step()

    assert two_base_models.bases == ["one", "two"]
    assert two_base_models.engine.state.bases == []


def test_a_full_queue_refuses_at_once_while_a_base_model_is_loaded():
    bench, replies = Bench(), queue.SimpleQueue()
    bench.slow["base"] = threading.Event()
    engine = Engine(bench._load, replies.put, Scheduler(max_waiting=1, adapter_slot_count=1))
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    engine.submit(make_sequence())
    while engine.state.loading is None:
        pass
    refused = make_sequence()
    engine.submit(refused)
    ((sequence, reply),) = replies.get(timeout=10)
    bench.slow["base"].set()
    engine.stop(grace_seconds=0)
    thread.join()

    assert sequence is refused
    assert reply.code == "queue_full"


def test_stop_does_not_wait_for_the_base_model_that_is_being_loaded(two_base_models):
    two_base_models.submit(base="two")
    two_base_models.engine.step()
    stopped = two_base_models.engine.stop(grace_seconds=0)
    two_base_models.engine.run()

    assert stopped.done()
