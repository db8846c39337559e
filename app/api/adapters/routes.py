"""Adapters: list, show, download, delete. Imports are in `imports.py`."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from app.api.adapters import archives
from app.api.adapters.schemas import AdapterRead
from app.api.deps import AdapterName, After, Limit, ServicesDep
from app.api.http.errors import documented
from app.api.http.store_threads import in_store_threads, read_in_store_threads
from app.api.schemas import Page
from app.core.adapters import imports as adapter_imports, records as adapter_records
from app.core.engine.workers import engine_states
from app.core.errors import NotFound
from app.core.errors.adapters import AdapterNotFound, AdapterNotReady
from app.core.settings import Settings
from app.core.specs.states import AdapterState

router = APIRouter(prefix="/adapters", tags=["Adapters"])

_CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20
_MEDIA_TYPES = {"zip": "application/zip", "tar": "application/x-tar"}


@router.get("", summary="List adapters")
def list_adapters(
    services: ServicesDep,
    state: Annotated[
        AdapterState, Query(description="Those that answer, or imports that do not yet, or never will.")
    ] = AdapterState.READY,
    after: After = None,
    limit: Limit = 50,
) -> Page[AdapterRead]:
    """Adapters that answer, the newest first."""
    with services.database.snapshot() as session:
        if state is not AdapterState.READY:
            unverified, cursor = adapter_imports.find_page(session, state=state, after=after, limit=limit)
            return Page(data=[AdapterRead.from_import(row) for row in unverified], next=cursor)
        rows, cursor = adapter_records.find_page(session, after=after, limit=limit)
        states = engine_states(session, services.settings)
    return Page(data=[AdapterRead.from_row(row, states) for row in rows], next=cursor)


@router.get("/{id_or_name}", summary="Show an adapter", responses=documented(404))
def show_adapter(id_or_name: AdapterName, services: ServicesDep) -> AdapterRead:
    """An adapter, by its id or its name, also one that is being imported."""
    with services.database.snapshot() as session:
        return find_adapter(session, services.settings, id_or_name)


@router.get(
    "/{id_or_name:path}/download",
    response_class=StreamingResponse,
    summary="Download an adapter",
    responses=documented(404)
    | {
        200: {
            "description": "The PEFT folder.",
            "content": {media_type: {} for media_type in _MEDIA_TYPES.values()},
        }
    },
)
@in_store_threads
def download_adapter(
    id_or_name: AdapterName,
    services: ServicesDep,
    format: Annotated[Literal["zip", "tar"], Query(description="Kind of archive.")] = "zip",
) -> StreamingResponse:
    """The adapter's folder, as PEFT reads it: `PeftModel.from_pretrained(base, folder)`.

    `curl -OJ localhost:8000/adapters/support-bot/download`
    """
    with services.database.snapshot() as session:
        adapter = adapter_records.get(session, id_or_name)
    names = services.store.list_files(adapter.artifact)
    if not names:
        raise AdapterNotFound(f"The files of adapter {adapter.name!r} are gone.", param="adapter")
    write = archives.zip_chunks if format == "zip" else archives.tar_chunks
    # The names of adapters made through OpenAI's API have slashes and colons.
    folder = re.sub(r"[^A-Za-z0-9._-]+", "-", adapter.name)
    chunks = write(services.store, adapter.artifact, names, folder)
    headers = {"content-disposition": f'attachment; filename="{folder}.{format}"'}
    return StreamingResponse(
        read_in_store_threads(services.store_threads, chunks),
        media_type=_MEDIA_TYPES[format],
        headers=headers,
    )


@router.get(
    "/{id_or_name:path}/card",
    response_class=Response,
    summary="Show an adapter's model card",
    responses=documented(404, 409) | {200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}},
)
@in_store_threads
def show_card(id_or_name: AdapterName, services: ServicesDep) -> Response:
    """The README.md of its files, as it is. 404 where it has none."""
    with services.database.snapshot() as session:
        row = adapter_records.get(session, id_or_name)
        name, key = row.name, f"{row.artifact}/{_CARD}"
    try:
        with services.store.open(key) as file:
            content = file.read(_MAX_CARD_BYTES)
    except FileNotFoundError:
        raise NotFound(f"The adapter {name!r} has no model card.") from None
    return Response(content, media_type="text/markdown; charset=utf-8")


@router.delete("/{id_or_name}", status_code=204, summary="Delete an adapter", responses=documented(404, 409))
@in_store_threads
def delete_adapter(id_or_name: AdapterName, services: ServicesDep) -> None:
    """Delete an adapter, and its files, that no unended job continues from; its own job stays."""
    with services.database.transaction() as session:
        try:
            artifact = adapter_records.delete(session, id_or_name)
        except AdapterNotReady:
            artifact = adapter_imports.delete(session, id_or_name)
    services.store.discard(artifact)


def find_adapter(session: Session, settings: Settings, id_or_name: str) -> AdapterRead:
    """An adapter as the API shows it, or an import. Raises AdapterNotFound."""
    try:
        adapter = adapter_records.get(session, id_or_name)
        return AdapterRead.from_row(adapter, engine_states(session, settings))
    except AdapterNotReady:
        unverified = adapter_records.find_import(session, id_or_name)
        if unverified is None:
            raise
        return AdapterRead.from_import(unverified)
