"""Which job a worker takes: the oldest that fits, near its files; a large one at the head does not starve."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from app.core.engine import workers
from app.core.engine.base_models import LocalModel
from app.core.engine.workers import WorkerReport
from app.core.jobs import checkpoints, placement, queue, records as job_records
from app.core.jobs.placement import PATIENCE_SECONDS, Host
from app.core.storage import tables
from app.core.storage.database import Database
from tests.factories import make_job

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = NOW + timedelta(seconds=1)
LATER = NOW + timedelta(seconds=PATIENCE_SECONDS + 1)

Submit = Callable[..., str]


@pytest.fixture
def database(each_database: Database) -> Database:
    return each_database


@pytest.fixture
def submit(database: Database) -> Submit:
    def submit_job(name: str, gpus: int = 1, *, now: datetime = NOW, **fields: Any) -> str:
        with database.transaction() as session:
            job = make_job(session, name=name, now=now, **fields)
            job.gpus = gpus
            return job.id

    return submit_job


@pytest.fixture
def register(database: Database) -> Callable[..., None]:
    """Registers another worker."""

    def heartbeat(
        worker_id: str,
        *,
        free: int,
        total: int,
        folders: tuple[str, ...] = (),
        kind: str = "cpu",
        roles: tuple[str, ...] = ("train",),
        now: datetime = NOW,
    ) -> None:
        local = [
            LocalModel(name=name, architecture=None, context_length=512, size_bytes=7, obstacle=None)
            for name in folders
        ]
        device = {"kind": kind}
        report = WorkerReport(worker_id, list(roles), device, free_gpus=free, total_gpus=total, folders=local)
        with database.transaction() as session:
            workers.heartbeat(session, report, now=now)

    return heartbeat


def host(worker_id: str = "here-1-aaaaaa", *, free: int, total: int, **fields: Any) -> Host:
    return Host(worker_id, free, total, **{"folders": (), "downloaded": (), **fields})


def choose(database: Database, host: Host, *, now: datetime = SOON) -> str | None:
    with database.transaction() as session:
        job_id = placement.choose(session, host, lease_seconds=30, now=now)
        return job_records.get(session, job_id).name if job_id else None


def test_the_oldest_job_that_fits_is_taken(submit: Submit, database: Database) -> None:
    submit("eight", gpus=8)
    submit("two", gpus=2, now=NOW + timedelta(milliseconds=1))
    submit("one", now=NOW + timedelta(milliseconds=2))
    # Eight devices will never be here, so nothing is left to the first.
    assert choose(database, host(free=4, total=4)) == "two"
    assert choose(database, host(free=1, total=1)) == "one"
    assert choose(database, host(free=0, total=4)) is None


def test_devices_are_left_to_a_large_job_at_the_head(
    submit: Submit, database: Database, register: Callable[..., None]
) -> None:
    submit("four", gpus=4)
    submit("one", now=NOW + timedelta(milliseconds=1))
    assert choose(database, host(free=3, total=4)) is None
    assert choose(database, host(free=4, total=4)) == "four"


def test_only_the_host_with_most_free_devices_leaves_them_to_it(
    submit: Submit, database: Database, register: Callable[..., None]
) -> None:
    submit("four", gpus=4)
    submit("one", now=NOW + timedelta(milliseconds=1))
    register("there-1-bbbbbb", free=2, total=4)
    assert choose(database, host(free=1, total=4)) == "one"
    assert choose(database, host(free=3, total=4)) is None


def test_a_large_job_starts_before_jobs_that_were_submitted_after_it(
    submit: Submit, database: Database
) -> None:
    """Small jobs arrive without end, and one of two devices is freed at a time."""
    started: list[str] = []
    running = ["small"] * 2
    submit("large", gpus=2)
    for turn in range(6):
        submit(f"small-{turn}", now=NOW + timedelta(seconds=turn + 1))
        if running:
            running.pop()
        with database.transaction() as session:
            here = host(free=2 - len(running), total=2)
            lease = queue.claim(session, "worker", lease_seconds=30, host=here, now=SOON)
        if lease:
            started.append(lease.spec.name or "")
            running += [lease.job_id] * lease.gpus
    assert started[0] == "large"


@pytest.mark.parametrize("seed", range(2))
def test_a_large_job_starts_on_one_of_several_hosts_while_the_others_stay_busy(
    submit: Submit, database: Database, register: Callable[..., None], seed: int
) -> None:
    """Small jobs wait without end, those that run end in a random order, and every freed host claims."""
    random, hosts = Random(seed), {f"{name}-1-aaaaaa": ["small"] * 4 for name in "abc"}
    submit("large", gpus=4)
    for turn in range(60):
        submit(f"small-{turn}", now=NOW + timedelta(milliseconds=turn + 1))
    for _turn in range(60):
        ending = random.choice([host_id for host_id, running in hosts.items() if running])
        hosts[ending].pop()
        for host_id, running in hosts.items():
            register(host_id, free=4 - len(running), total=4)
        with database.transaction() as session:
            here = host(ending, free=4 - len(hosts[ending]), total=4)
            lease = queue.claim(session, ending, lease_seconds=30, host=here, now=SOON)
        if lease:
            hosts[ending] += [lease.job_id] * lease.gpus
        if lease and lease.gpus == 4:
            break
        # No more devices are idle than the job needs, and one more where two hosts have equally many.
        assert sum(4 - len(running) for running in hosts.values()) <= 5
    else:
        pytest.fail("the large job has starved")


def test_a_job_waits_a_moment_for_the_host_that_has_its_checkpoint(
    submit: Submit, database: Database, register: Callable[..., None]
) -> None:
    job_id = submit("resumes")
    with database.transaction() as session:
        lease = queue.claim(session, "there-1-bbbbbb", lease_seconds=30, now=NOW)
        assert lease
        checkpoints.record_written(session, lease, 10, "there")
        queue.release(session, lease, reason="The worker is shutting down.", now=NOW)
    register("there-2-cccccc", free=1, total=1)
    here, there = host(free=1, total=1), host("there-2-cccccc", free=1, total=1)
    assert choose(database, here) is None
    assert choose(database, there) == "resumes"
    assert choose(database, here, now=LATER) == "resumes"
    # Where that host has no device free, nobody waits for it.
    register("there-2-cccccc", free=0, total=1)
    assert choose(database, here) == "resumes"
    with database.snapshot() as session:
        assert checkpoints.find(session, job_id).host == "there"


def test_a_resumed_job_waits_for_that_host_from_then_on(
    submit: Submit, database: Database, register: Callable[..., None]
) -> None:
    job_id, resumed_at = submit("resumes"), NOW + timedelta(hours=1)
    with database.transaction() as session:
        lease = queue.claim(session, "there-1-bbbbbb", lease_seconds=30, now=NOW)
        assert lease
        checkpoints.record_written(session, lease, 10, "there")
        job_records.request_pause(session, job_id, now=NOW)
        queue.release(session, lease, reason="", now=NOW)
        job_records.resume(session, job_id, now=resumed_at)
    register("there-2-cccccc", free=1, total=1, now=resumed_at)
    here = host(free=1, total=1)
    assert choose(database, here, now=resumed_at + timedelta(seconds=1)) is None
    assert choose(database, here, now=resumed_at + timedelta(seconds=PATIENCE_SECONDS + 1)) == "resumes"


@pytest.mark.parametrize(("has_gpu", "left"), [(True, 1), (False, 0)])
def test_devices_that_a_job_was_given_are_not_counted_as_free_by_others(
    submit: Submit, database: Database, register: Callable[..., None], has_gpu: bool, left: int
) -> None:
    submit("two", gpus=2)
    register("here-1-aaaaaa", free=3, total=4)
    here = host(free=3, total=4, has_gpu=has_gpu)
    with database.transaction() as session:
        assert queue.claim(session, "worker", lease_seconds=30, host=here, now=SOON)
    with database.snapshot() as session:
        assert [row.free_gpus for row in workers.find_alive(session, lease_seconds=30, now=SOON)] == [left]


def test_a_host_with_the_base_model_is_preferred(
    submit: Submit, database: Database, register: Callable[..., None]
) -> None:
    submit("hub", base_model="owner/model")
    with database.transaction() as session:
        report = WorkerReport("there-1-bbbbbb", ["train"], free_gpus=1, total_gpus=1)
        workers.heartbeat(session, report, now=NOW)
        row = session.get(tables.WorkerRow, "there-1-bbbbbb")
        assert row
        row.base_models = [{"name": "owner/model", "is_whole": True}]
    assert choose(database, host(free=1, total=1)) is None
    assert choose(database, host(free=1, total=1, downloaded={"owner/model"})) == "hub"
    assert choose(database, host(free=1, total=1), now=LATER) == "hub"


def test_a_free_gpu_is_preferred_to_a_cpu(
    submit: Submit, database: Database, register: Callable[..., None]
) -> None:
    submit("any")
    register("there-1-bbbbbb", free=1, total=2, kind="cuda")
    cpu = host(free=4, total=4, downloaded={"tiny"})
    assert choose(database, cpu) is None
    assert choose(database, cpu, now=LATER) == "any"
    register("there-1-bbbbbb", free=0, total=2, kind="cuda")
    assert choose(database, cpu) == "any"


def test_workers_that_claim_at_the_same_moment_get_different_jobs(submit: Submit, database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    names = {submit(name) for name in ("first", "second")}
    with database.transaction() as one, database.transaction() as other:
        here = host(free=1, total=1)
        leases = [queue.claim(session, "worker", lease_seconds=30, host=here) for session in (one, other)]
        assert {lease.job_id for lease in leases if lease} == names


def test_a_job_whose_process_still_runs_here_is_not_taken_again(submit: Submit, database: Database) -> None:
    job_id = submit("lost")
    assert choose(database, host(free=1, total=2, running={job_id})) is None


@pytest.mark.parametrize(
    ("gpus", "base_model", "said"),
    [
        (1, "owner/any", None),
        (2, "owner/any", None),
        (3, "owner/any", "3 free GPUs on one host; the most that one has now is 2"),
        (4, "owner/any", "a worker with 4 GPUs"),
        (1, "tiny", None),
        (1, "other", "a worker with other in its models folder"),
        (4, "other", "a worker with 4 GPUs and other in its models folder"),
        # One worker has the GPUs, another has the model.
        (2, "tiny", "a worker with 2 GPUs and tiny in its models folder"),
    ],
)
def test_what_a_job_waits_for_is_said(
    submit: Submit,
    database: Database,
    register: Callable[..., None],
    gpus: int,
    base_model: str,
    said: str | None,
) -> None:
    job_id = submit("waits", gpus=gpus, base_model=base_model)
    now = datetime.now(UTC)
    register("there-1-bbbbbb", free=2, total=3, now=now)
    register("there-2-cccccc", free=1, total=1, folders=("tiny",), now=now)
    with database.snapshot() as session:
        job = job_records.get(session, job_id)
        assert placement.find_waits(session, [job], lease_seconds=3000).get(job_id) == said


def test_a_job_of_several_gpus_waits_where_no_worker_is_alive(submit: Submit, database: Database) -> None:
    job_id = submit("two", gpus=2, base_model="owner/any")
    with database.snapshot() as session:
        job = job_records.get(session, job_id)
        found = placement.find_waits(session, [job], lease_seconds=30)
    assert found == {job_id: "a worker with 2 GPUs"}


def test_a_job_over_several_hosts_takes_no_device_of_its_worker(submit: Submit, database: Database) -> None:
    submit("hosts", gpus=0)
    submit("one", now=NOW + timedelta(milliseconds=1))
    assert choose(database, host(free=1, total=1)) == "one"
    assert choose(database, host(free=0, total=1)) is None
    assert choose(database, host(free=0, total=1, cluster=True)) == "hosts"
    assert choose(database, host(free=1, total=1, cluster=True)) == "hosts"
    # Of a worker that takes such jobs alone.
    assert choose(database, host(free=0, total=0, cluster=True)) == "hosts"


def test_a_worker_of_a_cluster_alone_takes_no_other_job(submit: Submit, database: Database) -> None:
    submit("one")
    assert choose(database, host(free=0, total=0, cluster=True)) is None


def test_the_devices_of_a_cpu_stay_free_while_a_job_over_several_hosts_runs(
    submit: Submit, register: Callable[..., None], database: Database
) -> None:
    register("here-1-aaaaaa", free=2, total=2)
    here = host(free=2, total=2, has_gpu=False)
    with database.transaction() as session:
        placement.record_taken(session, here, 0)
        assert session.get_one(tables.WorkerRow, "here-1-aaaaaa").free_gpus == 2


def test_a_job_over_several_hosts_waits_for_a_worker_with_a_cluster(
    submit: Submit, register: Callable[..., None], database: Database
) -> None:
    job_id = submit("hosts", gpus=0)

    def find_wait() -> str | None:
        with database.snapshot() as session:
            job = session.get_one(tables.JobRow, job_id)
            return placement.find_waits(session, [job], lease_seconds=1e9).get(job_id)

    assert find_wait() is not None
    register("there-1-bbbbbb", free=8, total=8, folders=("tiny",))
    assert find_wait() == "a worker with a Ray cluster (TUNESMITH_RAY_ADDRESS)"
    register("there-2-cccccc", free=0, total=0, folders=("tiny",), roles=("cluster",))
    assert find_wait() is None
