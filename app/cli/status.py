"""`tunesmith status`: the workers, what is loaded, the queue, the disks, as the API reports them."""

from datetime import datetime
from typing import Any

import typer
from pydantic import BaseModel
from rich.text import Text

from app.cli.connection.invocation import Json, client_of
from app.cli.output import age_text, note, print_json, show_fields, size_text


class QueueCountsView(BaseModel):
    """Jobs, counted by state."""

    by_state: dict[str, int]


class StoredView(BaseModel):
    """How many things of one kind are stored, and their size."""

    count: int
    size_bytes: int


class DiskView(BaseModel):
    """A folder, and the disk that it is on."""

    folder: str
    path: str
    total_bytes: int
    free_bytes: int


class StatusWorkerView(BaseModel):
    """A worker that is alive."""

    id: str
    roles: list[str]
    device: dict[str, Any]
    devices: list[dict[str, Any]] = []
    engine: dict[str, Any] | None = None
    problems: list[str] = []
    heartbeat_at: datetime


class VersionsView(BaseModel):
    """What runs at the API."""

    tunesmith: str


class StatusView(BaseModel):
    """The API and its workers at a glance."""

    started_at: datetime
    versions: VersionsView
    workers: list[StatusWorkerView]
    queue: QueueCountsView
    datasets: StoredView
    adapters: StoredView
    disks: list[DiskView]


def show_status(context: typer.Context, as_json: Json = False) -> None:
    """Whether jobs run and models answer here: workers, loaded models, the queue, disks, versions."""
    client = client_of(context)
    answer = client.get("/status")
    if as_json:
        return print_json(answer)
    found = StatusView.model_validate(answer)
    waiting = found.queue.by_state.get("queued", 0)
    running = found.queue.by_state.get("running", 0)
    fields: list[tuple[str, str | Text | None]] = [
        ("api", f"{client.url}, Tunesmith {found.versions.tunesmith}, up since {age_text(found.started_at)}"),
        ("jobs", f"{running:,} running, {waiting:,} waiting"),
        ("datasets", f"{found.datasets.count:,}, {size_text(found.datasets.size_bytes)}"),
        ("adapters", f"{found.adapters.count:,}, {size_text(found.adapters.size_bytes)}"),
    ]
    for worker in found.workers:
        fields += _worker_fields(worker)
    for disk in found.disks:
        free = f"{size_text(disk.free_bytes)} of {size_text(disk.total_bytes)} free"
        fields.append((f"disk of {disk.folder}", f"{free}, {disk.path}"))
    show_fields(fields)
    for problem in [problem for worker in found.workers for problem in worker.problems]:
        note(f"Warning: {problem}", "yellow")
    if not found.workers:
        note("No worker is alive: jobs wait, and no model answers. `tunesmith up` starts one.", "yellow")


def _worker_fields(worker: StatusWorkerView) -> list[tuple[str, str | Text | None]]:
    bases = (worker.engine or {}).get("bases", [])
    loading = (worker.engine or {}).get("loading")
    loaded = [f"{base['base_model']['name']} ({len(base['adapters'])} adapters)" for base in bases]
    if loading:
        loaded.append(f"{loading['base_model']['name']} is being loaded")
    return [
        ("worker", f"{worker.id}: {', '.join(worker.roles)}, heard of {age_text(worker.heartbeat_at)}"),
        *_device_fields(worker.devices or [worker.device]),
        ("  serves", ", ".join(loaded) or ("nothing yet" if worker.engine else None)),
    ]


def _device_fields(devices: list[dict[str, Any]]) -> list[tuple[str, str | Text | None]]:
    if len(devices) == 1:
        return [("  device", _device_text(devices[0]))]
    return [
        (f"  GPU {device.get('index', place)}", _device_text(device)) for place, device in enumerate(devices)
    ]


def _device_text(device: dict[str, Any]) -> str:
    parts = [str(device.get("name", "unknown device"))]
    total, free = device.get("memory_bytes"), device.get("free_bytes")
    if total and free is not None:
        parts.append(f"{size_text(free)} of {size_text(total)} free")
    if state := device.get("state"):
        parts.append(f"{state} {device['job']}" if device.get("job") else str(state))
    return ", ".join(parts)
