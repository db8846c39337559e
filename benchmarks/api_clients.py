"""Clients of the API in a process of their own: many that submit jobs, or many that follow one.

`python -m benchmarks.api_clients` reads one Load as JSON from standard input and writes its results. HTTP is
written by hand, to use as little CPU as possible.
"""

import asyncio
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from typing import Any

import uvloop

from benchmarks.timings import percentile

_END_OF_HEAD = b"\r\n\r\n"
_LATE_SAMPLES = 10  # followers that read the time in each event


@dataclasses.dataclass
class Load:
    """Either `count` submissions of `body` at `rate` per second (0: as fast as possible), or followers."""

    port: int
    connections: int
    path: str
    body: dict[str, Any] | None = None
    count: int = 0
    rate: float = 0


def start(load: Load) -> "subprocess.Popen[bytes]":
    """Start the process; it prints `ready` once followers are connected."""
    command = [sys.executable, "-m", "benchmarks.api_clients"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(json.dumps(dataclasses.asdict(load)).encode() + b"\n")
    process.stdin.flush()
    return process


def finish(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Wait for the process and return its results."""
    assert process.stdout
    with process:
        lines = process.stdout.read().splitlines()
    if process.returncode:
        sys.exit("The clients failed.")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


async def _submit_all(load: Load) -> dict[str, Any]:
    content = json.dumps(load.body).encode()
    head = f"POST {load.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    numbers = itertools.count()
    seconds: list[float] = []
    statuses: Counter[str] = Counter()
    began = time.perf_counter()

    async def submit() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
        while (number := next(numbers)) < load.count:
            due = began + number / load.rate if load.rate else time.perf_counter()
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(request)
            statuses[await _read_answer(reader)] += 1
            seconds.append(time.perf_counter() - due)  # from the due time, so that waiting here counts, too
        writer.close()

    await asyncio.gather(*(submit() for _ in range(load.connections)))
    return {
        "seconds": time.perf_counter() - began,
        "times": _milliseconds("answer", seconds),
        "statuses": statuses,
        "client_cpu_seconds": time.process_time(),
    }


async def _read_answer(reader: asyncio.StreamReader) -> str:
    head = await reader.readuntil(_END_OF_HEAD)
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
    await reader.readexactly(int(length))
    return head[9:12].decode()


async def _follow_all(load: Load) -> dict[str, Any]:
    late: list[float] = []
    connected = asyncio.Semaphore(0)
    followers = [
        asyncio.create_task(_follow(load, connected, late if number < _LATE_SAMPLES else None))
        for number in range(load.connections)
    ]
    for _ in followers:
        await connected.acquire()
    print("ready", flush=True)
    counts = await asyncio.gather(*followers)
    return {
        "events": counts,
        "times": _milliseconds("late", late),
        "client_cpu_seconds": time.process_time(),
    }


async def _follow(load: Load, connected: asyncio.Semaphore, late: list[float] | None) -> int:
    """Read events until the stream ends. Returns their count. The first event signals the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
    writer.write(
        f"GET {load.path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    events, tail = 0, b""
    while piece := await reader.read(1 << 16):
        found = (tail + piece).count(b"\nid: ") - tail.count(b"\nid: ")
        tail = piece[-4:]
        if found and not events:
            connected.release()
        elif found and late is not None:
            late.extend(_lateness(piece))
        events += found
    writer.close()
    return events


def _lateness(piece: bytes) -> list[float]:
    now = time.time()
    stamps = (part.partition(b'"')[0] for part in piece.split(b'"at":"')[1:])
    return [now - datetime.fromisoformat(stamp.decode()).timestamp() for stamp in stamps if len(stamp) > 20]


def _milliseconds(name: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_p{percent}_ms": round(percentile(seconds, percent) * 1e3, 1) for percent in (50, 99, 100)
    }


def main() -> None:
    """Load in, results out."""
    load = Load(**json.loads(sys.stdin.readline()))
    print(json.dumps(uvloop.run(_submit_all(load) if load.body else _follow_all(load))))


if __name__ == "__main__":
    main()
