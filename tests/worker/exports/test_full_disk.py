"""A disk that is really full while an export is made, at each stage that writes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.core.specs.states import ExportPhase
from tests.small_disk import FILLER, fill, make_room, mounted
from tests.worker.exports.conftest import MakeAdapter, failed, succeeded
from worker.exports.reports import Exporting, ExportRequest
from worker.exports.run import run

# An export leaves so much to others, and is refused where there is less.
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


def filling(disk: Path, phase: ExportPhase, room: int) -> Callable[[BaseModel], None]:
    """Something else takes the disk when the phase begins."""

    def take(report: BaseModel) -> None:
        if isinstance(report, Exporting) and report.phase is phase and not (disk / FILLER).exists():
            fill(disk, room)

    return take


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_disk_that_fills_up_while_merging_leaves_no_part_of_a_model(
    request_on: Callable[..., ExportRequest], small_disk: Path, room: int
) -> None:
    request = request_on(format="merged")

    ended = failed(run(request, filling(small_disk, ExportPhase.MERGING, room)))

    assert ended.code == "disk_full"
    assert "retry" in (ended.hint or "")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == [FILLER]
    make_room(small_disk)
    succeeded(run(request, lambda report: None))


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_conversion_that_fills_the_disk_keeps_the_merge_from_which_a_retry_goes_on(
    request_on: Callable[..., ExportRequest], small_disk: Path, room: int
) -> None:
    request = request_on(format="pytorch_bin")

    ended = failed(run(request, filling(small_disk, ExportPhase.CONVERTING, room)))

    assert ended.code == "disk_full"
    assert (small_disk / "merged" / "model.safetensors").is_file()
    make_room(small_disk)
    # The worker removes what an attempt leaves.
    shutil.rmtree(request.folder)
    request.folder.mkdir()
    phases: list[ExportPhase] = []
    succeeded(run(request, lambda report: phases.append(report.phase)))  # type: ignore[attr-defined]
    assert ExportPhase.CONVERTING in phases
    assert ExportPhase.MERGING not in phases
