"""How long `/health` takes while many followers join one job at once, and how long until all have its events.

    python -m benchmarks.followers --followers 1000 --events 1500

Writes `benchmarks/results/followers-<machine>.json`. The API and the followers are a process each; this one
asks `/health` on one connection, one request after the other, from before the first follower joins until the
last one has every event.
"""

import argparse
import json
import os
import platform
import socket
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.core.jobs import events, records as job_records
from app.core.jobs.events import AnyEventData, Metrics
from app.core.specs.job import JobSpec
from benchmarks import api_clients
from benchmarks.api_box import ApiBox
from benchmarks.api_clients import Load
from benchmarks.timings import percentile

_RESULTS = Path(__file__).parent / "results"
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def main() -> None:
    """Measure each number of followers on a fresh API; print and record the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--followers", type=int, nargs="+", default=[1, 50, 1000])
    parser.add_argument("--events", type=int, default=1500)
    parser.add_argument("--machine", default=f"cpu-{os.cpu_count()}-cores", help="name of the results' file")
    options = parser.parse_args()
    rows = []
    for followers in options.followers:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, ApiBox(Path(folder)) as box:
            rows.append(_measure(box, followers, options.events))
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "command": "python -m benchmarks.followers",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "platform": platform.machine()},
        "rows": rows,
    }
    (_RESULTS / f"followers-{options.machine}.json").write_text(json.dumps(report, indent=1) + "\n")


def _measure(box: ApiBox, followers: int, count: int) -> dict[str, Any]:
    job_id, last_seq = _add_ended_job(box, count)
    memory, cpu = box.memory_mib(), box.cpu_seconds()
    watch = _HealthWatch(box.port)
    began = time.perf_counter()
    found = api_clients.finish(api_clients.start(Load(box.port, followers, f"/jobs/{job_id}/events")))
    seconds = time.perf_counter() - began
    health = watch.stop()
    return {
        "followers": followers,
        "events": last_seq,
        "followers_with_every_event": sum(number == last_seq for number in found["events"]),
        "seconds": round(seconds, 2),
        "api_cpu_seconds": round(box.cpu_seconds() - cpu, 2),
        "memory_growth_mib": round(box.memory_mib() - memory, 1),
        "health_requests": len(health),
        **{f"health_p{percent}_ms": round(percentile(health, percent) * 1e3, 1) for percent in (50, 99, 100)},
        "load_average": os.getloadavg()[0],
    }


def _add_ended_job(box: ApiBox, count: int) -> tuple[str, int]:
    entries: list[AnyEventData] = [
        Metrics(step=step, total_steps=count, epoch=0.5, loss=1.25, learning_rate=2e-4, tokens=4096)
        for step in range(count)
    ]
    with box.database.transaction() as session:
        spec = JobSpec(base_model="owner/model", dataset=box.add_dataset())
        job_id = job_records.submit(session, spec, max_queued=10).id
        events.append(session, job_id, entries)
        return job_id, job_records.request_cancel(session, job_id).last_event_seq


class _HealthWatch:
    """A thread that asks `/health` without a pause."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._seconds: list[float] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.is_set():
            began = time.perf_counter()
            self._socket.sendall(_REQUEST)
            found = b""
            while not found.endswith(b'"ok"}'):
                found += self._socket.recv(1 << 16)
            self._seconds.append(time.perf_counter() - began)
            time.sleep(0.002)

    def stop(self) -> list[float]:
        """The seconds of each request."""
        self._is_over.set()
        self._thread.join()
        return self._seconds


if __name__ == "__main__":
    main()
