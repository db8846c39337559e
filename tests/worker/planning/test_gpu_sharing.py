"""The GPU policy: a job trains while serving goes on, or serving pauses."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from app.core.engine.preflight import MemoryFit
from app.core.errors.datasets import DatasetNotFound
from app.core.settings import GpuPolicy
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_dataset, make_job
from worker.planning.gpu_sharing import find_request, reserve_device


class FakeEngine:
    """Returns a given fit, and lists the calls."""

    def __init__(self, fit: MemoryFit | None = None) -> None:
        self.fit = fit
        self.calls: list[str] = []

    def find_fit(self, request):
        self.calls.append("asked")
        return self.fit

    @contextmanager
    def sharing(self, job_id, reserved_bytes):
        self.calls.append(f"leaves {reserved_bytes} to {job_id}")
        yield
        self.calls.append("serves alone")

    @contextmanager
    def paused(self, job_id):
        self.calls.append(f"pauses for {job_id}")
        yield
        self.calls.append("serves alone")


FITS, TOO_LARGE = MemoryFit(fits=True, bytes=7), MemoryFit(fits=False, bytes=99)
SHARED = ["asked", "leaves 7 to job_1", "serves alone"]
PAUSED = ["pauses for job_1", "serves alone"]


@pytest.mark.parametrize(
    ("policy", "is_gpu", "fit", "expected"),
    [
        ("auto", True, FITS, SHARED),
        ("auto", True, TOO_LARGE, ["asked", *PAUSED]),
        ("auto", True, None, ["asked", *PAUSED]),
        ("auto", False, None, []),
        ("coexist", True, TOO_LARGE, []),
        ("pause_serving", True, FITS, PAUSED),
        ("pause_serving", False, FITS, PAUSED),
    ],
)
def test_a_job_gets_the_device_as_the_policy_says(policy, is_gpu, fit, expected):
    engine = FakeEngine(fit)
    with reserve_device(engine, "job_1", lambda: None, policy=GpuPolicy(policy), is_gpu=is_gpu):
        pass

    assert engine.calls == expected


def test_a_job_that_can_not_be_looked_at_gets_the_device_alone():
    def describe():
        raise DatasetNotFound

    engine = FakeEngine(FITS)
    with reserve_device(engine, "job_1", describe, policy=GpuPolicy.AUTO, is_gpu=True):
        pass

    assert engine.calls == PAUSED


def test_what_is_asked_is_the_job_s_own_spec_and_datasets(database: Database, tmp_path: Path):
    store = ArtifactStore(str(tmp_path / "store"))
    with database.transaction() as session:
        rows, checks = (make_dataset(session, store, tmp_path) for _ in range(2))
        job = make_job(session, dataset=rows.id, validation_dataset=checks.id)
        request = find_request(session, job.id)

        assert request.spec.model_dump(mode="json") == job.spec
        assert (request.dataset.artifact, request.dataset.rows) == (rows.artifact, 1)
        assert request.validation_dataset.artifact == checks.artifact
