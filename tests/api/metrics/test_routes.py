"""GET /metrics: requests, queues, devices and engines."""

import socket

from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse

from app.api.deps import Services
from app.core.engine.devices import WorkerDevice
from app.core.jobs import queue
from app.core.storage.database import Database
from tests.api.test_health import register
from tests.core.evaluations.evaluations import make_evaluation
from tests.factories import make_job
from tests.fakes import FakeEngine, ServerThread
from tests.worker.inference.engine.bench import Bench


def scrape(client: TestClient) -> list[str]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return answer.text.splitlines()


def test_metrics_count_jobs_workers_and_requests_by_route(client: TestClient, database: Database) -> None:
    register(database)
    with database.transaction() as session:
        job_id = make_job(session).id
    for _ in range(2):
        client.get(f"/jobs/{job_id}")
    lines = client.get("/metrics").text.splitlines()
    assert 'tunesmith_jobs{state="queued"} 1.0' in lines
    assert 'tunesmith_jobs{state="failed"} 0.0' in lines
    assert 'tunesmith_evaluations{state="queued"} 0.0' in lines
    assert 'tunesmith_workers_alive{role="serve"} 1.0' in lines
    assert 'tunesmith_requests_total{method="GET",route="/jobs/{job_id}",status="200"} 2.0' in lines
    assert 'tunesmith_request_seconds_count{method="GET",route="/jobs/{job_id}"} 2.0' in lines
    (age,) = [line for line in lines if line.startswith("tunesmith_queue_age_seconds ")]
    assert float(age.split()[1]) > 0


def test_what_waits_is_counted_by_kind_and_priority(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        make_job(session)
        urgent = [make_job(session, priority=3) for _ in range(2)]
        make_evaluation(session, priority=-1)
        claimed = queue.claim(session, "worker", lease_seconds=30)
    assert claimed is not None
    assert claimed.job_id in {job.id for job in urgent}

    lines = scrape(client)
    assert 'tunesmith_queue_waiting{kind="job",priority="0"} 1.0' in lines
    assert 'tunesmith_queue_waiting{kind="job",priority="3"} 1.0' in lines
    assert 'tunesmith_queue_waiting{kind="evaluation",priority="-1"} 1.0' in lines
    assert 'tunesmith_queue_waiting{kind="export",priority="0"} 0.0' in lines
    assert 'tunesmith_queue_oldest_seconds{kind="export"} 0.0' in lines


def test_devices_are_those_of_the_last_heartbeat(client: TestClient, database: Database) -> None:
    gpu = WorkerDevice(
        kind="cuda", name="H200", index=1, memory_bytes=100, free_bytes=30, utilization_percent=75
    )
    register(database, devices=[gpu, WorkerDevice(kind="cpu", name="CPU", memory_bytes=50)])

    lines = scrape(client)
    of_gpu = '{device="cuda:1",name="H200",worker="worker-1"}'
    assert f"tunesmith_device_memory_bytes{of_gpu} 100.0" in lines
    assert f"tunesmith_device_memory_used_bytes{of_gpu} 70.0" in lines
    assert f"tunesmith_device_utilization_ratio{of_gpu} 0.75" in lines
    # What is not known has no series.
    assert not any(line.startswith("tunesmith_device_temperature_celsius{") for line in lines)
    assert not any("memory_used_bytes" in line and "CPU" in line for line in lines)


def test_engines_say_theirs_and_each_has_its_worker(
    client: TestClient, database: Database, engine: FakeEngine
) -> None:
    bench = Bench()
    bench.finish(bench.submit(max_new_tokens=3))
    engine.metrics = bench.engine.metrics.render()
    for number in (1, 2):
        engine.register(database, id=f"worker-{number}")

    lines = scrape(client)
    for worker in ("worker-1", "worker-2"):
        assert f'tunesmith_engine_up{{worker="{worker}"}} 1.0' in lines
        assert f'tunesmith_engine_generation_tokens_total{{worker="{worker}"}} 3.0' in lines
        assert f'tunesmith_engine_time_to_first_token_seconds_count{{worker="{worker}"}} 1.0' in lines
    assert sum(line.startswith("# TYPE tunesmith_engine_step_seconds ") for line in lines) == 1


def test_a_silent_engine_delays_no_scrape_for_long(
    client: TestClient, database: Database, engine: FakeEngine, services: Services
) -> None:
    engine.register(database)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        register(database, id="worker-2", engine_url=url)
        lines = scrape(client)
    assert 'tunesmith_engine_up{worker="worker-1"} 1.0' in lines
    assert 'tunesmith_engine_up{worker="worker-2"} 0.0' in lines
    assert 'tunesmith_jobs{state="queued"} 0.0' in lines


def test_what_can_not_be_read_is_left_out(client: TestClient, database: Database) -> None:
    stranger = ServerThread(PlainTextResponse("{}<html>"), lifespan="off")
    register(database, engine_url=stranger.url)
    lines = scrape(client)
    stranger.stop()
    assert 'tunesmith_engine_up{worker="worker-1"} 0.0' in lines
