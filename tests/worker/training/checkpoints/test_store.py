"""Checkpoints: complete or absent, checked before they are used, and whole on a disk that is full."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.core.jobs.events import Checkpoint, Log, Metrics, Warn
from tests.small_disk import FILLER, fill, mounted, remove_filler
from tests.worker.training.conftest import MakeRequest, Reports, following, run_here
from worker.processes.reports import Advanced, Happened, Outcome, TrainingRequest

SPEC: dict[str, Any] = {
    "training": {"max_steps": 5, "save_steps": 1, "logging_steps": 1, "learning_rate": 1e-2},
    "lora": {"r": 64},
}


def checkpoints(request: TrainingRequest) -> list[str]:
    return sorted(path.name for path in (request.job_folder / "checkpoints").iterdir())


def weights(request: TrainingRequest) -> bytes:
    return (request.output_folder / "adapter_model.safetensors").read_bytes()


def warnings(reports: Reports) -> dict[str, str]:
    return {event.code: event.message for event in reports.events(Warn)}


@pytest.fixture
def undisturbed(make_request: MakeRequest) -> bytes:
    request = make_request("undisturbed", **SPEC)
    run_here(request)
    return weights(request)


@pytest.fixture
def stopped(make_request: MakeRequest) -> TrainingRequest:
    """A job with checkpoints of steps 2 and 3."""
    request = make_request(**SPEC)
    run_here(request, stop_when=lambda report: isinstance(report, Advanced) and report.step == 3)
    assert checkpoints(request) == ["checkpoint-2", "checkpoint-3"]
    return request


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("optimizer.pt", cut, "optimizer.pt has"),
        ("adapter_model.safetensors", flip, "adapter_model.safetensors is not what was written"),
        ("rng_state.pth", Path.unlink, "rng_state.pth is missing"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", cut, "it can't be read"),
    ],
)
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(
    stopped: TrainingRequest,
    undisturbed: bytes,
    name: str,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    damage(stopped.job_folder / "checkpoints" / "checkpoint-3" / name)

    reports = run_here(stopped)

    assert f"step 3 is damaged and was removed: {words}" in warnings(reports)["checkpoint_damaged"]
    assert any("checkpoint of step 2" in event.message for event in reports.events(Log))
    assert weights(stopped) == undisturbed


def test_without_a_good_checkpoint_the_job_begins_anew(stopped: TrainingRequest, undisturbed: bytes) -> None:
    for folder in (stopped.job_folder / "checkpoints").iterdir():
        flip(folder / "optimizer.pt")

    reports = run_here(stopped)

    assert [event.step for event in reports.events(Metrics)] == [1, 2, 3, 4, 5]
    assert weights(stopped) == undisturbed


def test_a_half_written_checkpoint_is_ignored_and_removed(stopped: TrainingRequest) -> None:
    folder = stopped.job_folder / "checkpoints"
    (folder / "checkpoint-4.partial").mkdir()
    (folder / "checkpoint-9").mkdir()
    (folder / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"half")

    reports = run_here(stopped)

    assert reports.ended.outcome is Outcome.FINISHED
    assert any("checkpoint of step 3" in event.message for event in reports.events(Log))
    assert checkpoints(stopped) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("early_stopping", [None, 3])
def test_what_the_worker_had_not_recorded_is_said_again(
    make_request: MakeRequest, early_stopping: int | None
) -> None:
    training = SPEC["training"] | {"eval_steps": 2, "validation_split": 0.2}
    request = make_request(training=training | {"early_stopping_patience": early_stopping})
    first = run_here(request, stop_when=lambda report: isinstance(report, Advanced) and report.step == 4)
    recorded = Reports(report for report in first if not is_after(report, step=2))

    second = run_here(following(request, recorded))

    steps = [event.step for reports in (recorded, second) for event in reports.events(Metrics)]
    assert steps == [1, 2, 3, 4, 5]


def is_after(report: BaseModel, *, step: int) -> bool:
    return isinstance(report, Happened) and getattr(report.event, "step", 0) > step


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, on which ENOSPC is the system's own."""
    with mounted(tmp_path / "disk", megabytes=8) as is_mounted:
        if not is_mounted:
            pytest.skip("mounting a small file system needs root: the full disk is NOT tested")
        yield tmp_path / "disk"


@pytest.mark.parametrize("room", [0, 40_000, 200_000])
def test_a_disk_that_fills_up_fails_the_job_and_keeps_the_last_checkpoints(
    make_request: MakeRequest, small_disk: Path, undisturbed: bytes, room: int
) -> None:
    request = make_request(**SPEC)
    request = request.model_copy(update={"job_folder": small_disk / "job"})

    def fill_it(report: BaseModel) -> bool:
        if isinstance(report, Happened) and report.event == Checkpoint(step=2):
            fill(small_disk, room)
        return False

    reports = run_here(request, stop_when=fill_it)

    assert reports.ended.code == "disk_full"
    assert "retry" in (reports.ended.hint or "")
    assert checkpoints(request) == ["checkpoint-1", "checkpoint-2"]
    remove_filler(small_disk)
    again = run_here(following(request, reports))
    assert any("checkpoint of step 2" in event.message for event in again.events(Log))
    assert weights(request) == undisturbed


def test_a_disk_that_is_full_when_the_adapter_is_saved_costs_no_training(
    make_request: MakeRequest, small_disk: Path, undisturbed: bytes
) -> None:
    request = make_request(**SPEC)
    request = request.model_copy(update={"output_folder": small_disk / "adapter"})
    fill(small_disk, spare_bytes=40_000)

    reports = run_here(request)

    assert reports.ended.code == "disk_full"
    assert [path.name for path in small_disk.iterdir()] == [FILLER]
    remove_filler(small_disk)
    again = run_here(following(request, reports))
    assert not again.events(Metrics)
    assert weights(request) == undisturbed
