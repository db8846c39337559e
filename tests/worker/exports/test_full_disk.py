"""Exports on a small file system that fills up during each phase that writes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.core.specs.states import ExportPhase
from tests.small_disk import FILLER, fill, mounted, remove_filler
from tests.worker.exports.conftest import MakeAdapter, failed, succeeded
from worker.exports.reports import Exporting, ExportRequest
from worker.exports.run import run

# Slightly more than the spare space that an export requires.
MEGABYTES = 80


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", MEGABYTES) as is_mounted:
        if not is_mounted:
            pytest.skip("mounting a small file system needs root: the full disk is NOT tested")
        yield tmp_path / "disk"


@pytest.fixture
def request_on(
    small_disk: Path, make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter
) -> Callable[..., ExportRequest]:
    def make(**spec: Any) -> ExportRequest:
        (small_disk / "attempt").mkdir()
        places = {"folder": small_disk / "attempt", "merged": small_disk / "merged"}
        return make_request(make_adapter(), **spec).model_copy(update=places)

    return make


def filling(disk: Path, phase: ExportPhase, free_bytes: int) -> Callable[[BaseModel], None]:
    """A receiver of reports that fills the disk when the phase begins."""

    def receive(report: BaseModel) -> None:
        if isinstance(report, Exporting) and report.phase is phase and not (disk / FILLER).exists():
            fill(disk, free_bytes)

    return receive


@pytest.mark.parametrize("free_bytes", [0, 100_000])
def test_a_disk_that_fills_up_while_merging_leaves_no_part_of_a_model(
    request_on: Callable[..., ExportRequest], small_disk: Path, free_bytes: int
) -> None:
    request = request_on(format="merged")

    ended = failed(run(request, filling(small_disk, ExportPhase.MERGING, free_bytes)))

    assert ended.code == "disk_full"
    assert "retry" in (ended.hint or "")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == [FILLER]
    remove_filler(small_disk)
    succeeded(run(request, lambda report: None))


@pytest.mark.parametrize("free_bytes", [0, 100_000])
def test_a_retry_after_a_conversion_filled_the_disk_reuses_the_merged_model(
    request_on: Callable[..., ExportRequest], small_disk: Path, free_bytes: int
) -> None:
    request = request_on(format="pytorch_bin")

    ended = failed(run(request, filling(small_disk, ExportPhase.CONVERTING, free_bytes)))

    assert ended.code == "disk_full"
    assert (small_disk / "merged" / "model.safetensors").is_file()
    remove_filler(small_disk)
    # The worker removes an attempt's folder.
    shutil.rmtree(request.folder)
    request.folder.mkdir()
    phases: list[ExportPhase] = []
    succeeded(run(request, lambda report: phases.append(report.phase)))  # type: ignore[attr-defined]
    assert ExportPhase.CONVERTING in phases
    assert ExportPhase.MERGING not in phases
