"""The API's throughput on SQLite: jobs submitted per second, followers of one job's events, lists.

    python -m benchmarks.api

Writes `benchmarks/results/api-<machine>.json`. The API, its clients, and the writer of events are a process
each. The CPU time of a request gives the throughput of one core, however busy the machine is.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from app.core.jobs import events, records as job_records
from app.core.jobs.events import Metrics
from app.core.specs.job import JobSpec
from app.core.specs.states import JobState
from benchmarks import api_clients
from benchmarks.api_box import ApiBox
from benchmarks.api_clients import Load
from benchmarks.full_database import fill

_RESULTS = Path(__file__).parent / "results"
_WARM_UP = 200
_QUIET_SECONDS = 5
_PAGE, _FULL_JOBS, _FULL_ADAPTERS = 50, 2500, 500
_LIST_REQUESTS = 30
_LISTS = (
    "/jobs",
    "/jobs?state=succeeded",
    "/datasets",
    "/adapters",
    "/v1/files?limit=20",
    "/v1/files?purpose=fine-tune-results&limit=20",
    "/v1/fine_tuning/jobs",
    "/v1/fine_tuning/jobs?metadata[team]=3",
    "/v1/models?limit=50",
)
_PACKAGES = ("fastapi", "uvicorn", "uvloop", "sqlalchemy", "pydantic")

Row = dict[str, Any]


def main() -> None:
    """Run every measurement several times, print and record the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="how often each thing is measured")
    parser.add_argument("--seconds", type=float, default=20, help="how long each run offers its load")
    parser.add_argument("--rate", type=float, default=500, help="submissions offered each second")
    parser.add_argument("--connections", type=int, default=32, help="of those who submit")
    parser.add_argument("--followers", type=int, default=1000)
    parser.add_argument("--events", type=float, default=10, help="events appended each second")
    parser.add_argument("--machine", default=f"cpu-{os.cpu_count()}-cores", help="name of the results' file")
    options = parser.parse_args()
    rows: list[Row] = []
    for _ in range(options.runs):
        for measure in (_offered, _fastest, _followed, _listed):
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, ApiBox(Path(folder)) as box:
                rows.append({**measure(box, options), "load_average": os.getloadavg()[0]})
            print(json.dumps(rows[-1]), flush=True)
            _record(options.machine, rows)


def _offered(box: ApiBox, options: argparse.Namespace) -> Row:
    """Submissions at a fixed rate, whether or not responses arrive."""
    return {
        "kind": "submissions offered",
        "offered_per_second": options.rate,
        **_submit(box, options.connections, int(options.rate * options.seconds), options.rate),
    }


def _fastest(box: ApiBox, options: argparse.Namespace) -> Row:
    """Submissions as fast as responses arrive."""
    count = int(options.rate * options.seconds)
    return {"kind": "submissions, as many as it takes", **_submit(box, options.connections, count, 0)}


def _submit(box: ApiBox, connections: int, count: int, rate: float) -> Row:
    body = {"base_model": "owner/model", "dataset": box.add_dataset()}
    _run(Load(box.port, connections, "/jobs", body, count=_WARM_UP))
    before = box.cpu_seconds()
    found = _run(Load(box.port, connections, "/jobs", body, count=count, rate=rate))
    used = box.cpu_seconds() - before
    with box.database.snapshot() as session:
        stored = job_records.count_by_state(session)[JobState.QUEUED] - _WARM_UP
    return {
        "connections": connections,
        "submissions": count,
        "stored": stored,
        "errors": {status: number for status, number in found["statuses"].items() if status != "202"},
        "per_second": round(count / found["seconds"]),
        **found["times"],
        "api_cpu_ms_each": round(used / count * 1e3, 2),
        "api_memory_mib": box.memory_mib(),
        "clients_cpu_seconds": round(found["client_cpu_seconds"], 1),
    }


def _followed(box: ApiBox, options: argparse.Namespace) -> Row:
    """Followers of one job over SSE while events are appended; counts those that received every event."""
    memory_without = box.memory_mib()
    with box.database.transaction() as session:
        spec = JobSpec(base_model="owner/model", dataset=box.add_dataset())
        job_id = job_records.submit(session, spec, max_queued=10).id
    process = api_clients.start(Load(box.port, options.followers, f"/jobs/{job_id}/events"))
    assert process.stdout
    process.stdout.readline()
    quiet_before = box.cpu_seconds()
    time.sleep(_QUIET_SECONDS)
    before = box.cpu_seconds()
    began = time.perf_counter()
    last_seq = _append(box, job_id, options.events, options.seconds)
    memory = box.memory_mib()
    found = api_clients.finish(process)
    used, seconds = box.cpu_seconds() - before, time.perf_counter() - began
    return {
        "kind": "followers",
        "followers": options.followers,
        "events": last_seq,
        "followers_with_every_event": sum(count == last_seq for count in found["events"]),
        "events_sent_per_second": round(options.followers * last_seq / seconds),
        "memory_mib_without_followers": memory_without,
        "memory_mib": memory,
        "memory_kib_each_follower": round((memory - memory_without) * 1024 / options.followers, 1),
        "cores_while_nothing_happens": round((before - quiet_before) / _QUIET_SECONDS, 3),
        "cores_while_events_come": round(used / seconds, 3),
        "cpu_us_each_event_sent": round(used / (options.followers * last_seq) * 1e6, 1),
        **found["times"],
        "clients_cpu_seconds": round(found["client_cpu_seconds"], 1),
    }


def _listed(box: ApiBox, options: argparse.Namespace) -> Row:
    """Times of lists in a database with a page of everything, and in a full one."""
    fill(box, jobs=_PAGE, events_each=40, adapters=_PAGE)
    small = {url: _median_ms(box, url) for url in _LISTS}
    fill(box, jobs=_FULL_JOBS - _PAGE, events_each=40, adapters=_FULL_ADAPTERS - _PAGE)
    full = {url: _median_ms(box, url) for url in _LISTS}
    ratios = {url: round(full[url] / small[url], 2) for url in _LISTS}
    sizes = {"jobs": _FULL_JOBS, "events": _FULL_JOBS * 40, "adapters": _FULL_ADAPTERS}
    return {"kind": "lists", **sizes, "small_p50_ms": small, "full_p50_ms": full, "ratios": ratios}


def _median_ms(box: ApiBox, url: str) -> float:
    with httpx.Client(base_url=f"http://127.0.0.1:{box.port}", trust_env=False, timeout=60) as client:
        times = []
        for _ in range(_LIST_REQUESTS + 3):
            began = time.perf_counter()
            client.get(url).raise_for_status()
            times.append(time.perf_counter() - began)
    return round(statistics.median(times[3:]) * 1e3, 2)


def _append(box: ApiBox, job_id: str, rate: float, seconds: float) -> int:
    """Write events as a worker does, then end the job. Returns the seq of the last event."""
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        entry = Metrics(step=number, total_steps=1000, epoch=0.5, loss=1.25, learning_rate=2e-4, tokens=4096)
        with box.database.transaction() as session:
            events.append(session, job_id, [entry])
    with box.database.transaction() as session:
        return job_records.request_cancel(session, job_id).last_event_seq


def _run(load: Load) -> dict[str, Any]:
    return api_clients.finish(api_clients.start(load))


def _record(machine: str, rows: list[Row]) -> None:
    report = {
        "command": " ".join(["python -m benchmarks.api", *sys.argv[1:]]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "platform": platform.machine()},
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "database": "SQLite, WAL, synchronous=NORMAL: nothing is lost when a process is killed; the last "
        "commits perhaps when the power fails",
        "rows": rows,
    }
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"api-{machine}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
