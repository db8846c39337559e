"""The rows of the database. What may happen to them stands in queue.py, events.py and their neighbours."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, ForeignKey, Index, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from app.core.states import DatasetState, JobState


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC; SQLite stores no zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Dataset(Table):
    """The rows of a dataset in their stored form, the problems of its other rows, and where they came from.

    `size_bytes` and `sha256` are those of the stored rows; the upload's stand in `upload`, a Hub dataset's
    name and commit in `hub`. Until the rows are there, `format` is null and `artifact` empty. `original` is
    where the upload itself lies, byte for byte; only what came through /v1/files is kept so.
    """

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16), default=DatasetState.READY)
    error: Mapped[dict[str, Any] | None]
    hub: Mapped[dict[str, Any] | None]
    format: Mapped[str | None] = mapped_column(String(32))
    rows: Mapped[int]
    columns: Mapped[list[Any]]
    problems: Mapped[list[Any]]
    problem_count: Mapped[int]
    upload: Mapped[dict[str, Any]]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    artifact: Mapped[str] = mapped_column(String(255))
    original: Mapped[str | None] = mapped_column(String(255))
    original_bytes: Mapped[int | None] = mapped_column(BigInteger)
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_datasets_created_at_id", "created_at", "id"),)


class DatasetFetch(Table):
    """What is still to be done for a dataset in the state `fetching`, and the lease of the worker at it."""

    __tablename__ = "dataset_fetches"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    column_map: Mapped[dict[str, Any]]
    on_problem: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(index=True)


class Job(Table):
    """A job, its progress, and the lease of the worker that runs it."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=JobState.QUEUED)
    phase: Mapped[str | None] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]]
    base_model: Mapped[str] = mapped_column(String(200))
    dataset_id: Mapped[str] = mapped_column(String(32))

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    epoch: Mapped[float | None]
    loss: Mapped[float | None]
    eta_seconds: Mapped[float | None]

    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_hint: Mapped[str | None] = mapped_column(Text)

    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    pause_requested_at: Mapped[datetime | None]
    lost_attempts: Mapped[int] = mapped_column(default=0)
    last_event_seq: Mapped[int] = mapped_column(default=0)

    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    attempts: Mapped[list["Attempt"]] = relationship(order_by="Attempt.number", lazy="selectin")
    adapter: Mapped["Adapter | None"] = relationship(
        primaryjoin="and_(Job.id == foreign(Adapter.job_id), Adapter.step.is_(None))",
        lazy="selectin",
        viewonly=True,
        uselist=False,
    )
    # Never read through this: it lets a job and its first event be written together, in this order.
    events: Mapped[list["Event"]] = relationship(lazy="raise", passive_deletes="all")

    __table_args__ = (
        Index("ix_jobs_state_created_at", "state", "created_at", "id"),
        Index("ix_jobs_created_at_id", "created_at", "id"),
    )


class Attempt(Table):
    """One try at a job by one worker."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker_id: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    exit_reason: Mapped[str | None] = mapped_column(String(32))


class Event(Table):
    """One event of one job; `seq` counts from 1 within the job, without gaps."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]


class Adapter(Table):
    """A finished LoRA adapter and where its files are; with a `step`, one that a job kept on its way.

    `origin` holds the LoRA settings and the chat template of one that no job made, as far as they are known.
    """

    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(400), unique=True)
    base_model: Mapped[str] = mapped_column(String(200))
    quantization: Mapped[dict[str, Any]]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    step: Mapped[int | None]
    origin: Mapped[dict[str, Any] | None]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    artifact: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_adapters_created_at_id", "created_at", "id"),)


class AdapterImport(Table):
    """An adapter that was trained elsewhere and is not proved yet, or failed to be.

    `origin` is as in `adapters`; `error` says why it failed, or what it waits for.
    """

    __tablename__ = "adapter_imports"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    error: Mapped[dict[str, Any] | None]
    lost_attempts: Mapped[int] = mapped_column(default=0)
    base_model: Mapped[str] = mapped_column(String(200))
    quantization: Mapped[dict[str, Any]]
    origin: Mapped[dict[str, Any]]
    artifact: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_adapter_imports_created_at_id", "created_at", "id"),)


class Export(Table):
    """An adapter on its way into another format, the lease of the worker at it, and the files it became.

    It outlives its adapter: name and base model stand here too.
    """

    __tablename__ = "exports"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(32), index=True)
    adapter_name: Mapped[str] = mapped_column(String(400))
    base_model: Mapped[str] = mapped_column(String(200))
    spec: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str | None] = mapped_column(String(16))
    progress: Mapped[float] = mapped_column(default=0.0)
    agreement: Mapped[dict[str, Any] | None]
    notes: Mapped[list[Any]]
    files: Mapped[list[Any]]
    url: Mapped[str | None] = mapped_column(String(255))
    artifact: Mapped[str | None] = mapped_column(String(255))
    error: Mapped[dict[str, Any] | None]
    attempts: Mapped[int] = mapped_column(default=0)
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_exports_state_created_at", "state", "created_at", "id"),
        Index("ix_exports_created_at_id", "created_at", "id"),
    )


class Worker(Table):
    """A running worker process, as it described itself at its last heartbeat."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    roles: Mapped[list[Any]]
    device: Mapped[dict[str, Any]]
    engine_url: Mapped[str | None] = mapped_column(String(255))
    engine_token: Mapped[str | None] = mapped_column(String(64))
    engine_state: Mapped[dict[str, Any] | None]
    problems: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]


class ApiKey(Table):
    """A key made by `tunesmith keys create`; only its hash is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class Webhook(Table):
    """Who is told when a job ends, and the secret that signs it; null: the one of the settings."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    url: Mapped[str] = mapped_column(String(2048))
    secret: Mapped[str | None] = mapped_column(String(255))
    event_types: Mapped[list[Any]]
    is_enabled: Mapped[bool]
    created_at: Mapped[datetime]


class WebhookDelivery(Table):
    """One event for one webhook, and what came of sending it."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    event_type: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(32))
    body: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    response_status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    next_attempt_at: Mapped[datetime | None]
    give_up_at: Mapped[datetime]
    lease_token: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(index=True)
    delivered_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_webhook_deliveries_due", "state", "next_attempt_at"),
        Index("ix_webhook_deliveries_log", "webhook_id", "created_at", "id"),
    )


class IdempotencyKey(Table):
    """What a request made, so that its repetition makes nothing new; idempotency.py says what the id is."""

    __tablename__ = "idempotency_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(64))
    retries: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(index=True)
