"""What grows for ever: how large it is, and its deletion."""

from datetime import timedelta
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from app.api.base_models import removal
from app.api.deps import ServicesDep
from app.api.http.errors import documented
from app.core.retention import stored
from app.core.retention.stored import Stored, StoredKind

router = APIRouter(prefix="/storage", tags=["Service"])
Kind = Annotated[StoredKind, Path(description="What is to be deleted.")]


class StoredRead(BaseModel):
    """What is stored of one kind."""

    kind: StoredKind = Field(
        description="`checkpoints`, `tensorboard` and `logs` in the folders of jobs; their `events` in the "
        "database: log lines and curves; `exports`; `evaluations` with their answers; `base_models` "
        "in the Hub's cache."
    )
    count: int = Field(
        description="Jobs that have some; of `events`, `exports`, `evaluations` and `base_models` their "
        "number."
    )
    size_bytes: int | None = Field(
        description="Size of its files, as the API or the worker sees them; null: not known."
    )
    deletable_count: int = Field(
        description="So many of them are of what has ended, or are models that nothing needs now."
    )
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
    deleted: int = Field(description="Jobs whose files went; of other kinds their number.")
    size_bytes: int = Field(description="Size of the files.")


@router.get("", summary="What grows for ever")
def list_storage(services: ServicesDep) -> StorageListRead:
    """Checkpoints, TensorBoard files, logs, events, exports, evaluations, base models, with their sizes."""
    found = stored.measure(services.settings, services.database)
    return StorageListRead(data=[StoredRead.from_stored(one) for one in found])


@router.delete("/{kind}", summary="Delete what has ended", responses=documented(503))
async def delete_storage(
    kind: Kind,
    services: ServicesDep,
    older_than_days: Annotated[
        float,
        Query(ge=0, le=36_500, description="Only of what ended, or was last used, longer ago than this."),
    ] = 0,
) -> DeletedStorageRead:
    """Delete one kind, of all jobs, exports or evaluations that have ended.

    A failed or cancelled job without checkpoints is retried from its first step; without events it has
    neither a log nor curves. Base models go that nothing needs now, whatever adapters there are: they are
    downloaded again when they are needed. Records of jobs, adapters and datasets stay.
    """
    older_than = timedelta(days=older_than_days)
    if kind is StoredKind.BASE_MODELS:
        deleted, size = await removal.remove_unneeded(services, older_than)
    else:
        arguments = (kind, services.settings, services.database, services.store)
        deleted, size = await to_thread.run_sync(
            partial(stored.remove, *arguments, older_than=older_than), limiter=services.store_threads
        )
    return DeletedStorageRead(kind=kind, deleted=deleted, size_bytes=size)
