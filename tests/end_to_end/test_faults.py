"""The real API and worker on a tiny model while their processes are killed, stopped or cancelled."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.box import Box, running_box, server_sent_events
from tests.waiting import wait_for
from worker.processes.engine_process import ENGINE_MODULE

ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n} is said"}]}
    for n in range(40)
]
TRAINING = "worker.training.run"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """All tests share it; each starts again what the ones before it have ended."""
    with running_box(tmp_path_factory.mktemp("box"), lease_seconds="4", cancel_grace_seconds="10") as box:
        yield box


def spec(dataset: str, steps: int, **fields: Any) -> dict[str, Any]:
    training = {"max_steps": steps, "logging_steps": 1, "save_steps": 5, "learning_rate": 1e-3}
    return {
        "base_model": "tiny-llama",
        "dataset": dataset,
        "lora": {"r": 4, "target_modules": "all-linear"},
        "training": training | fields,
    }


def exit_reasons(job: dict[str, Any]) -> list[str]:
    return [attempt["exit_reason"] for attempt in job["attempts"]]


def test_a_killed_training_child_and_a_killed_api_leave_a_job_that_finishes(box: Box) -> None:
    api, worker = box.start_missing()
    job_id = box.submit(**spec(box.upload(ROWS), 150), name="tiny")
    box.wait_for_event(job_id, "checkpoint")
    child = box.child(worker, TRAINING)
    assert child is not None
    child.kill()
    wait_for(lambda: len(box.job(job_id)["attempts"]) == 2, "a second attempt")
    api.kill()
    api.wait()
    box.start_api()
    job = box.wait_for_state(job_id, "succeeded", "failed")
    assert exit_reasons(job) == ["process_died", "succeeded"]
    losses = [event["data"]["step"] for event in box.events(job_id, "metrics")]
    assert max(losses) == 150
    assert box.answer("Say 3", adapter="tiny") is not None


@pytest.mark.slow
def test_a_killed_worker_leaves_a_job_that_another_resumes(box: Box) -> None:
    _api, first = box.start_missing()
    job_id = box.submit(**spec(box.upload(ROWS), 150))
    box.wait_for_event(job_id, "checkpoint")
    child, engine = box.child(first, TRAINING), box.child(first, ENGINE_MODULE)
    assert child is not None
    assert engine is not None
    first.kill()
    child.wait(30)
    engine.wait(30)
    box.start_worker(wait=False)
    job = box.wait_for_state(job_id, "succeeded", "failed")
    assert exit_reasons(job) == ["worker_lost", "succeeded"]


@pytest.mark.slow
def test_sigterm_lets_the_step_finish_and_the_next_worker_goes_on_from_there(box: Box) -> None:
    _api, first = box.start_missing()
    job_id = box.submit(**spec(box.upload(ROWS), 150, save_steps=1000))
    box.wait_for_step(job_id, 3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert box.job(job_id)["state"] == "queued"
    stopped_at = box.events(job_id, "checkpoint")[-1]["data"]["step"]
    box.start_worker(wait=False)
    job = box.wait_for_state(job_id, "succeeded", "failed")
    assert exit_reasons(job) == ["handed_back", "succeeded"]
    steps = [event["data"]["step"] for event in box.events(job_id, "metrics")]
    assert steps == list(range(1, 151)), f"stopped at {stopped_at}"


@pytest.mark.slow
def test_cancel_ends_the_child_and_retry_goes_on_from_the_checkpoint(box: Box) -> None:
    _api, worker = box.start_missing()
    job_id = box.submit(**spec(box.upload(ROWS), 100_000))
    box.wait_for_event(job_id, "checkpoint")
    assert box.client.post(f"/jobs/{job_id}/cancel").status_code == 202
    box.wait_for_state(job_id, "cancelled", timeout_seconds=30)
    assert box.child(worker, TRAINING) is None
    assert box.client.post(f"/jobs/{job_id}/cancel").status_code == 409
    reached = box.job(job_id)["progress"]["step"]
    assert box.client.post(f"/jobs/{job_id}/retry").status_code == 202
    box.wait_for_step(job_id, reached + 5)
    assert box.client.post(f"/jobs/{job_id}/cancel").status_code == 202
    job = box.wait_for_state(job_id, "cancelled", timeout_seconds=30)
    assert exit_reasons(job) == ["cancelled", "cancelled"]


def test_a_killed_engine_is_replaced_and_a_follower_resumes_without_a_gap(box: Box) -> None:
    _api, worker = box.start_missing()
    job_id = box.submit(**spec(box.upload(ROWS), 60))
    engine = box.child(worker, ENGINE_MODULE)
    assert engine is not None
    engine.kill()
    headers = {"Accept": "text/event-stream"}
    with box.client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        seen = [next(ids) for ids in [server_sent_events(response)] for _ in range(3)]
    headers |= {"Last-Event-ID": str(seen[-1])}
    with box.client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        seen += server_sent_events(response)
    assert seen == list(range(1, len(seen) + 1))
    assert box.job(job_id)["state"] == "succeeded"
    wait_for(lambda: box.client.get("/ready").status_code == 200, "the new engine")
    assert box.answer("Say 3", base_model="tiny-llama") is not None
