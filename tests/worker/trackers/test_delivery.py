"""What is in the trackers' own files by the time that a tracking process confirms it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from app.core.specs.tracking import Tracker
from tests.worker.trackers.reading import Values, read_trackio, read_wandb
from worker.trackers.messages import Deliver, TrackedPoint, TrackingRequest
from worker.trackers.process import TrackerProcess

POINTS = [TrackedPoint(at=datetime.now(UTC), step=step, values={"train/loss": 2.0}) for step in (1, 2, 3)]
CONFIRMED: Values = {("train/loss", step): 2.0 for step in (1, 2, 3)}


@contextmanager
def delivered(tracker: Tracker, folder: Path) -> Iterator[None]:
    """A process that has confirmed the points, and is killed afterwards."""
    request = TrackingRequest(
        tracker=tracker, job_id="job_1", project="support", run_name="first", has_begun=False, folder=folder
    )
    environment = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")}
    with TrackerProcess(
        request, folder / "log", environment=environment, find_deadline=lambda: None
    ) as process:
        process.wait_until_open()
        process.deliver(Deliver(points=POINTS))
        yield


def test_points_that_wandb_confirms_are_in_its_file(tmp_path: Path) -> None:
    with delivered(Tracker.WANDB, tmp_path):
        assert CONFIRMED.items() <= read_wandb(tmp_path)[0].items()


def test_points_that_trackio_confirms_are_in_its_file(tmp_path: Path) -> None:
    with delivered(Tracker.TRACKIO, tmp_path):
        assert read_trackio(tmp_path / "trackio" / "support.db")[0] == CONFIRMED
