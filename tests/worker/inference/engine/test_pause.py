"""The engine gives the device to a job and takes it back; it shares the device; it stops."""

import pytest

from app.core.engine.messages import Finished
from tests.worker.inference.engine.bench import Bench


@pytest.fixture
def bench():
    return Bench()


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


def test_a_job_that_shares_the_device_is_shown_and_keeps_its_memory_until_resume(bench):
    shared = bench.engine.share("job_1", 7)
    sequence = bench.submit()
    bench.finish(sequence)
    assert shared.done()
    assert isinstance(bench.mail.end(sequence), Finished)
    assert (bench.engine.state.shares_with, bench.engine.reserved_bytes) == ("job_1", 7)
    bench.engine.resume()
    bench.engine.step()

    assert (bench.engine.state.shares_with, bench.engine.reserved_bytes) == (None, 0)


def test_stop_ends_the_loop_when_nothing_runs_any_more(bench):
    running = bench.submit(max_new_tokens=5)
    bench.engine.step()
    stopped = bench.engine.stop(grace_seconds=10)
    bench.engine.run()

    assert stopped.done()
    assert isinstance(bench.mail.end(running), Finished)
