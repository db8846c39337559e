"""Rows of datasets, and of fetches of Hub datasets that have not ended."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.specs.states import DatasetState
from app.core.storage.tables.base import CountedRow, Table


class DatasetRow(Table):
    """A dataset: the key of its stored rows, the problems of the rows left out, and its origin.

    `size_bytes` and `sha256` are those of the stored rows; those of the upload are in `upload`, a Hub
    dataset's name and commit in `hub`. Until the rows are stored, `format` is null and `artifact` empty.
    `unused_fields` are those from which nothing is learned: each has `field`, `rows`,
    `changes_learning` and the first `lines`.
    `original` is the key of the upload's own bytes, which are stored only for uploads through /v1/files.
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
    unused_fields: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    upload: Mapped[dict[str, Any]]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    artifact: Mapped[str] = mapped_column(String(255))
    original: Mapped[str | None] = mapped_column(String(255))
    original_bytes: Mapped[int | None] = mapped_column(BigInteger)
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_datasets_created_at_id", "created_at", "id"),)


class DatasetFetchRow(CountedRow, Table):
    """The fetch of a dataset in the state `fetching`, and the lease of the worker that fetches it."""

    __tablename__ = "dataset_fetches"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    column_map: Mapped[dict[str, Any]]
    on_problem: Mapped[str] = mapped_column(String(16))
    on_unused: Mapped[str] = mapped_column(String(16), default="refuse", server_default="refuse")
    created_at: Mapped[datetime] = mapped_column(index=True)
