"""What grows for ever: how large it is, and its deletion."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from app.api.deps import ServicesDep
from app.core.retention import stored
from app.core.retention.stored import Stored, StoredKind

router = APIRouter(prefix="/storage", tags=["Service"])
Kind = Annotated[StoredKind, Path(description="What is to be deleted.")]


class StoredRead(BaseModel):
    """What is stored of one kind."""

    kind: StoredKind = Field(
        description="`checkpoints`, `tensorboard` and `logs` in the folders of jobs; their `events` in the "
        "database: log lines and curves; `exports`."
    )
    count: int = Field(description="Jobs that have some; of `events` and `exports` their number.")
    size_bytes: int | None = Field(description="Size of its files on the API's machine; null: not known.")
    deletable_count: int = Field(description="So many of them are of jobs or exports that have ended.")
    deletable_bytes: int | None = Field(description="Size of those.")
    keep_days: float = Field(description="After so many days it is deleted by itself; 0: never.")

    @classmethod
    def from_stored(cls, found: Stored) -> "StoredRead":
        """The kind as the API shows it."""
        return cls(
            kind=found.kind,
            count=found.count,
            size_bytes=found.size_bytes,
            deletable_count=found.deletable_count,
            deletable_bytes=found.deletable_bytes,
            keep_days=found.keep_days,
        )


class StorageListRead(BaseModel):
    """Everything that grows for ever."""

    data: list[StoredRead] = Field(description="Every kind.")


class DeletedStorageRead(BaseModel):
    """What was deleted."""

    kind: StoredKind = Field(description="What was deleted.")
    deleted: int = Field(description="Jobs whose files went; of `events` and `exports` their number.")
    size_bytes: int = Field(description="Size of the files.")


@router.get("", summary="What grows for ever")
def list_storage(services: ServicesDep) -> StorageListRead:
    """Checkpoints, TensorBoard files, logs, events and exports, with their sizes."""
    found = stored.measure(services.settings, services.database)
    return StorageListRead(data=[StoredRead.from_stored(one) for one in found])


@router.delete("/{kind}", summary="Delete what has ended")
def delete_storage(
    kind: Kind,
    services: ServicesDep,
    older_than_days: Annotated[
        float, Query(ge=0, le=36_500, description="Only of what ended longer ago than this.")
    ] = 0,
) -> DeletedStorageRead:
    """Delete one kind, of all jobs or exports that have ended.

    A failed or cancelled job without checkpoints is retried from its first step; without events it has
    neither a log nor curves. Records of jobs, adapters and datasets stay.
    """
    deleted, size = stored.remove(
        kind,
        services.settings,
        services.database,
        services.store,
        older_than=timedelta(days=older_than_days),
    )
    return DeletedStorageRead(kind=kind, deleted=deleted, size_bytes=size)
