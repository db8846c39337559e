"""Rows of running workers."""

from datetime import datetime
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import Table


class WorkerRow(Table):
    """A running worker process, as of its last heartbeat.

    `base_models` are in its Hub cache, `model_folders` in its models folder. `device` is the first of
    `devices`. A job may take `total_gpus` at most, and now `free_gpus`; those of a CPU are processes.
    """

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    roles: Mapped[list[Any]]
    device: Mapped[dict[str, Any]]
    devices: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    free_gpus: Mapped[int] = mapped_column(default=0, server_default="0")
    total_gpus: Mapped[int] = mapped_column(default=0, server_default="0")
    engine_url: Mapped[str | None] = mapped_column(String(255))
    engine_token: Mapped[str | None] = mapped_column(String(64))
    engine_state: Mapped[dict[str, Any] | None]
    problems: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    base_models: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    model_folders: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    trackers: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    has_hub_token: Mapped[bool | None]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
