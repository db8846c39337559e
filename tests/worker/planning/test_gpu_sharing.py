"""The GPU policy: beside serving, or in its place."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from app.core.engine.preflight import MemoryFit
from app.core.errors.datasets import DatasetNotFound
from app.core.settings import GpuPolicy
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_dataset, make_job
from worker.planning.gpu_sharing import find_request, make_room


class FakeEngine:
    """Says what room there is, and remembers what it was told."""

    def __init__(self, room: MemoryFit | None = None) -> None:
        self.room = room
        self.told: list[str] = []

    def find_room(self, request):
        self.told.append("asked")
        return self.room

    @contextmanager
    def sharing(self, job_id, reserved_bytes):
        self.told.append(f"leaves {reserved_bytes} to {job_id}")
        yield
        self.told.append("serves alone")

    @contextmanager
    def paused(self, job_id):
        self.told.append(f"pauses for {job_id}")
        yield
        self.told.append("serves alone")


FITS, TOO_LARGE = MemoryFit(fits=True, bytes=7), MemoryFit(fits=False, bytes=99)
BESIDE = ["asked", "leaves 7 to job_1", "serves alone"]
PAUSED = ["pauses for job_1", "serves alone"]


@pytest.mark.parametrize(
    ("policy", "is_gpu", "room", "expected"),
    [
        ("auto", True, FITS, BESIDE),
        ("auto", True, TOO_LARGE, ["asked", *PAUSED]),
        ("auto", True, None, ["asked", *PAUSED]),
        ("auto", False, None, []),
        ("coexist", True, TOO_LARGE, []),
        ("pause_serving", True, FITS, PAUSED),
        ("pause_serving", False, FITS, PAUSED),
    ],
)
def test_a_job_gets_the_device_as_the_policy_says(policy, is_gpu, room, expected):
    engine = FakeEngine(room)
    with make_room(engine, "job_1", lambda: None, policy=GpuPolicy(policy), is_gpu=is_gpu):
        pass

    assert engine.told == expected


def test_a_job_that_can_not_be_looked_at_gets_the_device_alone():
    def describe():
        raise DatasetNotFound

    engine = FakeEngine(FITS)
    with make_room(engine, "job_1", describe, policy=GpuPolicy.AUTO, is_gpu=True):
        pass

    assert engine.told == PAUSED


def test_what_is_asked_is_the_job_s_own_spec_and_datasets(database: Database, tmp_path: Path):
    store = ArtifactStore(str(tmp_path / "store"))
    with database.transaction() as session:
        rows, checks = (make_dataset(session, store, tmp_path) for _ in range(2))
        job = make_job(session, dataset=rows.id, validation_dataset=checks.id)
        request = find_request(session, job.id)

        assert request.spec.model_dump(mode="json") == job.spec
        assert (request.dataset.artifact, request.dataset.rows) == (rows.artifact, 1)
        assert request.validation_dataset.artifact == checks.artifact
