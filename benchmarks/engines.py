"""Requests a second through one engine and through several, each with its own processor cores or GPU.

    python -m benchmarks.engines --model data/models/SmolLM2-135M-Instruct
    python -m benchmarks.engines --gpus --engines 1 2 4 --shape llama-7b --adapters 8 --clients 256 \\
        --new-tokens 128 --machine 4-h200

An API and real workers (`--role serve`) on one database; clients send one request after another. On
processors each engine is a worker's, with the same number of cores in all runs, so that two have twice the
processor of one; with `--gpus` all are one worker's (`SERVE_GPUS`), with a GPU each. Choose as many clients
as all engines have rows, so that the batches of all runs are full, and answers so long that neither the
clients' process nor the API's is busy for a whole second a second (`cores_used_by_clients`,
`cores_used_by_api`). The same is then measured without the API: clients send to the engines themselves, as
many to each. That is the most that a choice among engines can reach on the machine, where engines share its
memory, and the clients its cores. Where others use the machine too, requests per second of processor time
that the engines used still compare engines on processors.

Writes `benchmarks/results/engines-<machine>.json`, anew after each run: a failure loses no earlier run.
"""

import argparse
import asyncio
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from app.core.engine.messages import GenerateRequest
from app.core.engine.sampling import Sampling
from benchmarks import estimate_settings
from benchmarks.engine_cluster import PORT, Cluster, Engine, Model
from benchmarks.training_setups import SHAPES

_RESULTS = Path(__file__).parent / "results"
_RETRY_SECONDS = 0.5
_PACKAGES = ("torch", "transformers", "fastapi", "uvicorn")


class ClientFailed(Exception):
    """A request was not answered; the message says to whom and why."""


@dataclass(frozen=True)
class Client:
    """One client: where it sends its requests, and what it asks for."""

    url: str
    headers: dict[str, str]
    body: dict[str, Any]


def main() -> None:
    """Measure, print and record."""
    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # In a process that ends: one that has used a GPU holds memory of it.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            model, adapters = process.submit(_write_models, folder, options).result()
        cluster = Cluster(folder, model, adapters)
        try:
            rows = _record_each(options, _measure_all(cluster, options))
        except ClientFailed as error:
            sys.exit(f"{error}\n{cluster.log_tails()}")
        finally:
            cluster.close()
    print(json.dumps(_compare(rows)))


def _record_each(options: argparse.Namespace, measured: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print each row, and record it with those before it; returns all."""
    rows = []
    for row in measured:
        print(json.dumps(row), flush=True)
        rows.append(row)
        _record(options, rows)
    return rows


def _measure_all(cluster: Cluster, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of the report, each when it has been measured. Raises ClientFailed."""
    for engines in options.engines:
        yield _through_api(cluster, engines, options)
    yield from _without_api(cluster, options)


def _write_models(folder: Path, options: argparse.Namespace) -> tuple[Path, list[Path]]:
    """The base model's folder, and those of adapters with random weights."""
    from benchmarks.serving_inputs import write_adapters

    model: Path | None = options.model
    if model is None:
        estimate_settings.build(options.shape, folder, SHAPES[options.shape])
        model = folder / "models" / options.shape
    model = model.absolute()
    return model, write_adapters(model, folder / "artifacts", options.adapters)


def _compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """How many times as many requests a second as one engine each number of engines has answered."""
    found: dict[str, dict[int, float]] = {}
    for through in ("API", "engines themselves"):
        by_count = {row["engines"]: row["requests_per_second"] for row in rows if row["through"] == through}
        if by_count.get(1):
            found[through] = {
                count: round(speed / by_count[1], 2) for count, speed in sorted(by_count.items())
            }
    return found


def _through_api(cluster: Cluster, engines: int, options: argparse.Namespace) -> dict[str, Any]:
    clients = [
        _api_client(cluster.models[number % len(cluster.models)], number, options)
        for number in range(options.clients)
    ]
    with cluster.running(engines, _cores(options)) as (api, found):
        processes = {"api": [api], "engines": [engine.pid for engine in found], "clients": [os.getpid()]}
        return _measure("API", found, clients, processes, options)


def _without_api(cluster: Cluster, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    most = max(options.engines)
    with cluster.running(most, _cores(options)) as (_, found):
        for count in sorted(options.engines, reverse=True):
            engines = found[:count]
            clients = [
                _engine_client(
                    engines[number % count],
                    cluster.models[number // most % len(cluster.models)],
                    number,
                    options,
                )
                for number in range(options.clients)
            ]
            processes = {"engines": [engine.pid for engine in engines], "clients": [os.getpid()]}
            yield _measure("engines themselves", engines, clients, processes, options)


def _cores(options: argparse.Namespace) -> int | None:
    return None if options.gpus else int(options.cores)


def _api_client(model: Model, number: int, options: argparse.Namespace) -> Client:
    body: dict[str, Any] = {"model": model.name, "prompt": _prompt(number), "temperature": 0}
    body["max_tokens"] = _length(number, options)
    if model.adapter is None:
        body["quantization"] = model.base.quantization.model_dump(mode="json")
    return Client(f"http://127.0.0.1:{PORT}/v1/completions", {}, body)


def _engine_client(engine: Engine, model: Model, number: int, options: argparse.Namespace) -> Client:
    request = GenerateRequest(
        base_model=model.base,
        adapter=model.adapter,
        prompt=_prompt(number),
        sampling=Sampling(temperature=0, max_new_tokens=_length(number, options)),
    )
    headers = {"authorization": f"Bearer {engine.token}"}
    return Client(f"{engine.url}/generate", headers, request.model_dump(mode="json"))


def _prompt(number: int) -> str:
    return f"Client {number} says that"


def _length(number: int, options: argparse.Namespace) -> int:
    """From half to one and a half times the mean length: answers end at different times."""
    mean: int = options.new_tokens
    return mean // 2 + number % (mean + 1)


def _measure(
    through: str,
    engines: Sequence[Engine],
    clients: Sequence[Client],
    processes: dict[str, list[int]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Requests a second, once every engine has what the clients ask for, and who used the processor."""
    # Loads the base model, and its copy on the second engine while requests queue.
    asyncio.run(_send(clients, options.warm_up))
    load = os.getloadavg()[0]
    before, all_before, began = _cpu_seconds(processes), _all_cpu_seconds(), time.monotonic()
    answered = asyncio.run(_send(clients, options.seconds))
    passed = time.monotonic() - began
    used = {name: spent - before[name] for name, spent in _cpu_seconds(processes).items()}
    others = _all_cpu_seconds() - all_before - sum(used.values())
    return {
        "through": through,
        "engines": len(engines),
        "devices": sorted({engine.device for engine in engines}),
        "requests_per_second": round(answered / options.seconds, 2),
        "requests_per_core_second_of_engines": round(
            answered / options.seconds * passed / used["engines"], 2
        ),
        **{f"cores_used_by_{name}": round(spent / passed, 2) for name, spent in used.items()},
        "cores_used_by_others": round(others / passed, 2),
        "load_at_start": round(load, 2),
    }


async def _send(clients: Sequence[Client], seconds: float) -> int:
    """Send requests for so long; returns how many were answered within that time. Raises ClientFailed."""
    until = time.monotonic() + seconds
    try:
        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(_send_all(client, until)) for client in clients]
    except* ClientFailed as failures:
        raise failures.exceptions[0] from None
    return sum(task.result() for task in sending)


async def _send_all(client: Client, until: float) -> int:
    """Send one request after another; returns how many were answered in time. Raises ClientFailed.

    Each client has a connection pool of its own. In one pool httpx assigns requests that begin at once to the
    same connection and then assigns them again: with hundreds of clients that takes seconds, in which idle
    connections expire, and a request on one of them ends in httpx.ReadError.
    """
    answered = 0
    async with httpx.AsyncClient(timeout=None, trust_env=False, verify=False) as http:
        while time.monotonic() < until:
            try:
                response = await http.post(client.url, json=client.body, headers=client.headers)
            except httpx.TransportError as error:
                raise ClientFailed(
                    f"{client.url} gives no answer to {client.body}, {until - time.monotonic():.1f} s before "
                    f"the end of the run: {error!r} ({error.__context__!r})"
                ) from error
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS or b'"queue_full"' in response.content:
                # All clients begin at once, when the engine has loaded nothing.
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if not response.is_success or b'"finish_reason"' not in response.content:
                raise ClientFailed(f"{client.url} does not answer: {response.text[-500:]}")
            answered += time.monotonic() < until
    return answered


def _cpu_seconds(processes: dict[str, list[int]]) -> dict[str, float]:
    def spent(pid: int) -> float:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)

    return {name: sum(map(spent, pids)) for name, pids in processes.items()}


def _all_cpu_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _record(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    report = {
        "command": " ".join(["python -m benchmarks.engines", *sys.argv[1:]]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "platform": platform.machine()},
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "times_one_engine": _compare(rows),
        "rows": rows,
    }
    (_RESULTS / f"engines-{options.machine}.json").write_text(json.dumps(report, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, help="a base model's folder")
    model.add_argument("--shape", choices=SHAPES, help="of a base model with random weights")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2], help="how many, in each run")
    parser.add_argument("--gpus", action="store_true", help="one engine a GPU")
    parser.add_argument("--cores", type=int, default=1, help="of each engine, without --gpus")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=0)
    parser.add_argument("--new-tokens", type=int, default=16, help="mean length of an answer")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=40)
    parser.add_argument("--machine", default=f"cpu-{os.cpu_count()}-cores", help="name of the results' file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
