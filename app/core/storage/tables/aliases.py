"""Rows of aliases, and of every version that an alias had."""

from datetime import datetime
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import Table


class AliasRow(Table):
    """A name, and what it points to now: each target is an `app.core.aliases.shares.AliasTarget`."""

    __tablename__ = "aliases"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int]
    targets: Mapped[list[Any]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class AliasVersionRow(Table):
    """One change of an alias. They stay when the alias is deleted, so that no version comes twice.

    `action` is `put`, `rollback` or `delete`; `restored` the version whose targets a rollback took;
    `changed_by` the name of the API key. A deletion has no targets.
    """

    __tablename__ = "alias_versions"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    action: Mapped[str] = mapped_column(String(16))
    targets: Mapped[list[Any]]
    restored: Mapped[int | None]
    changed_by: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
