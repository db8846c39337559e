"""Which waiting job a worker takes: the next that fits, on the host that has most of what it needs.

Jobs come in the order of `app/core/work/turns.py`. The first that a host could run is the head of its queue.
Where it needs more devices than are free anywhere, the host with the most free devices leaves them to it
until they are enough; the others may take later jobs meanwhile. The largest number of free devices never
falls so, and the head can't starve but by jobs of a higher priority. (Slurm's backfill reserves for the head
of the queue likewise. How long a job takes is not known here, so that host takes no later job, not even one
that would end in time.)
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import func, select, true, update
from sqlalchemy.orm import Session

from app.core.engine import workers
from app.core.specs.job import JobSpec
from app.core.specs.states import JobState
from app.core.storage import clock, tables
from app.core.work import turns

# How long a job waits for a free host with a GPU, its checkpoint or base model, before any other takes it.
PATIENCE_SECONDS = 5.0
_MOST_LOOKED_AT = 100


@dataclass(frozen=True)
class Host:
    """What a worker has for jobs: free devices, those it could ever give to one, and base models.

    A CPU counts as so many devices as processes may train on it, for one job at a time.
    `cluster`: whether it takes jobs over several hosts, whose devices are those of a Ray cluster.
    """

    worker_id: str
    free: int
    total: int
    folders: Collection[str]
    downloaded: Collection[str]
    # Jobs whose processes still run here: one that lost its lease may be waiting already.
    running: Collection[str] = ()
    has_gpu: bool = False
    cluster: bool = False

    def could_run(self, job: "_Waiting | tables.JobRow") -> bool:
        """Whether the job may run here once enough devices are free."""
        return self.has_devices(job.gpus) and self.can_use(job.base_model)

    def has_devices(self, gpus: int) -> bool:
        """Whether a job of so many devices may run here at some time; 0: those of a Ray cluster."""
        return gpus <= self.total if gpus else self.cluster

    def can_use(self, base_model: str) -> bool:
        """Whether the base model is here, or can be downloaded."""
        return "/" in base_model or base_model in self.folders

    def rate(self, job: "_Waiting") -> tuple[bool, bool, bool]:
        """How much of what the job needs is here: (a GPU, its newest checkpoint, its base model)."""
        has_checkpoint = job.checkpoint_host == workers.host_of(self.worker_id)
        has_model = job.base_model in self.folders or job.base_model in self.downloaded
        return self.has_gpu, has_checkpoint, has_model


@dataclass(frozen=True)
class _Waiting:
    """A job that waits."""

    id: str
    gpus: int
    base_model: str
    checkpoint_host: str | None
    waits_since: datetime


def count_gpus(spec: JobSpec) -> int:
    """Returns the number of devices of its worker that a job takes: none where it is over several hosts."""
    return spec.resources.gpus if spec.resources.nodes == 1 else 0


def choose(session: Session, host: Host, *, lease_seconds: float, now: datetime | None = None) -> str | None:
    """Returns the id of the job that this worker is to claim now, or None."""
    if host.free < 1 and not host.cluster:
        return None
    now = now or clock.now(session)
    head = next(iter(_find_waiting(session, host, most_gpus=host.total, limit=1)), None)
    if head is None:
        return None
    others = _find_others(session, host, lease_seconds=lease_seconds, now=now)
    if head.gpus > host.free and _reserves(host, others, head):
        return None
    fitting = _find_waiting(session, host, most_gpus=host.free, limit=_MOST_LOOKED_AT)
    return next((job.id for job in fitting if not _is_left_to(others, host, job, now)), None)


def record_taken(session: Session, host: Host, gpus: int) -> None:
    """Show other workers at once, before the next heartbeat, that a job has devices of this host."""
    free = host.free - gpus if host.has_gpu or gpus == 0 else 0
    worker = tables.WorkerRow
    session.execute(update(worker).where(worker.id == host.worker_id).values(free_gpus=free))


def find_waits(session: Session, jobs: Sequence[tables.JobRow], *, lease_seconds: float) -> dict[str, str]:
    """Returns what waiting jobs need besides their turn and no worker that trains has, by the job's id."""
    demanding = [
        job for job in jobs if job.state == JobState.QUEUED and (job.gpus != 1 or "/" not in job.base_model)
    ]
    if not demanding:
        return {}
    alive = _find_training(session, lease_seconds=lease_seconds)
    # A worker without a device says so itself: one GPU is no demand.
    hosts = [
        replace(_make_host(worker), total=max(worker.total_gpus, "train" in worker.roles)) for worker in alive
    ]
    needs = {job.id: _describe_need(job, hosts) for job in demanding}
    return {job_id: need for job_id, need in needs.items() if need}


def _describe_need(job: tables.JobRow, hosts: Sequence[Host]) -> str | None:
    able = [host for host in hosts if host.could_run(job)]
    if not able:
        return f"a worker with {' and '.join(_name_needs(job, hosts))}"
    most_free = max(host.free for host in able)
    # That one GPU is taken means no more than that other jobs run.
    if job.gpus > max(1, most_free):
        return f"{job.gpus} free GPUs on one host; the most that one has now is {most_free}"
    return None


def _name_needs(job: tables.JobRow, hosts: Sequence[Host]) -> list[str]:
    """Name what no host has of what a job needs; all of it where each is somewhere, but not together."""
    if job.gpus == 0:
        gpus = ["a Ray cluster (TUNESMITH_RAY_ADDRESS)"]
    else:
        gpus = [f"{job.gpus} GPUs"] if job.gpus > 1 else []
    folder = [] if "/" in job.base_model else [f"{job.base_model} in its models folder"]
    lacking = [] if any(host.has_devices(job.gpus) for host in hosts) else gpus
    lacking = lacking + ([] if any(host.can_use(job.base_model) for host in hosts) else folder)
    return lacking or gpus + folder


def _find_waiting(session: Session, host: Host, *, most_gpus: int, limit: int) -> list[_Waiting]:
    """The first waiting jobs of at most so many devices whose base model this host can use."""
    job = tables.JobRow
    waits_since = func.coalesce(job.queued_at, job.created_at)
    found = session.execute(
        select(job.id, job.gpus, job.base_model, job.checkpoint_host, waits_since)
        .where(job.state == JobState.QUEUED, job.gpus <= most_gpus)
        .where(true() if host.cluster else job.gpus > 0)
        .where(workers.is_usable(job.base_model, host.folders), job.id.not_in(host.running))
        .order_by(*turns.next_first(job))
        .limit(limit)
    )
    return [_Waiting(*row) for row in found]


def _find_others(session: Session, host: Host, *, lease_seconds: float, now: datetime) -> list[Host]:
    alive = _find_training(session, lease_seconds=lease_seconds, now=now)
    return [_make_host(worker) for worker in alive if worker.id != host.worker_id]


def _find_training(
    session: Session, *, lease_seconds: float, now: datetime | None = None
) -> list[tables.WorkerRow]:
    alive = workers.find_alive(session, lease_seconds=lease_seconds, now=now)
    return [worker for worker in alive if not {"train", "cluster"}.isdisjoint(worker.roles)]


def _make_host(worker: tables.WorkerRow) -> Host:
    return Host(
        worker.id,
        worker.free_gpus,
        worker.total_gpus,
        {model["name"] for model in worker.model_folders},
        {model["name"] for model in worker.base_models if model["is_whole"]},
        has_gpu=worker.device.get("kind") == "cuda",
        cluster="cluster" in worker.roles,
    )


def _reserves(host: Host, others: Sequence[Host], head: _Waiting) -> bool:
    """Whether this host is the one that leaves its free devices to the head of the queue."""
    able = [other for other in [host, *others] if other.could_run(head)]
    return max(able, key=lambda one: (one.free, one.worker_id)) is host


def _is_left_to(others: Sequence[Host], host: Host, job: _Waiting, now: datetime) -> bool:
    """Whether a host with free devices has more of what the job needs, and the job has not waited long."""
    if now - job.waits_since > timedelta(seconds=PATIENCE_SECONDS):
        return False
    here = host.rate(job)
    return any(other.free >= job.gpus and other.could_run(job) and other.rate(job) > here for other in others)
