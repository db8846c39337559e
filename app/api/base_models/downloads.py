"""Downloads of base models: ask for one, follow it, cancel it. A worker that trains downloads."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.api.base_models.schemas import DownloadRead, NewDownload
from app.api.deps import After, Limit, ServicesDep
from app.api.http.errors import documented
from app.api.schemas import Page
from app.core.base_models import downloads
from app.core.engine import workers

DownloadId = Annotated[str, Path(description="The download's id.", examples=["dl_4kq1v9x2m7ahc3zt"])]

router = APIRouter(prefix="/models/downloads", tags=["Models"])


@router.post("", status_code=202, summary="Download a base model", responses=documented(429))
def submit_download(body: NewDownload, services: ServicesDep) -> DownloadRead:
    """Ask a worker for a model of the Hub. One that is being downloaded already is not downloaded twice.

    A download that broke off goes on with what has arrived. Jobs and requests download what they need
    themselves: nothing has to be downloaded first.
    """
    with services.database.snapshot() as session:
        workers.check_base_model(session, services.settings, body.base_model)
    with services.database.transaction() as session:
        row = downloads.submit(session, body.base_model, max_waiting=services.settings.max_queued_jobs)
        return DownloadRead.from_row(row)


@router.get("", summary="List downloads")
def list_downloads(services: ServicesDep, after: After = None, limit: Limit = 50) -> Page[DownloadRead]:
    """Downloads, the newest first; those that ended more than a week ago are left out."""
    with services.database.snapshot() as session:
        rows, cursor = downloads.find_page(session, after=after, limit=limit)
        return Page(data=[DownloadRead.from_row(row) for row in rows], next=cursor)


@router.get("/{download_id}", summary="Show a download", responses=documented(404))
def show_download(download_id: DownloadId, services: ServicesDep) -> DownloadRead:
    """How far a download is, and why it failed."""
    with services.database.snapshot() as session:
        return DownloadRead.from_row(downloads.get(session, download_id))


@router.post(
    "/{download_id}/cancel", status_code=202, summary="Cancel a download", responses=documented(404, 409)
)
def cancel_download(download_id: DownloadId, services: ServicesDep) -> DownloadRead:
    """End a download. What has arrived stays in the cache: the next one goes on with it."""
    with services.database.transaction() as session:
        return DownloadRead.from_row(downloads.cancel(session, download_id))
