"""Dependencies of endpoints: the services of the app, and the parameters that many routes share.

An endpoint opens its own short transaction, `with services.database.transaction() as session`, and closes it
before it returns. A dependency that held the transaction would enter and leave it in other threads than the
endpoint's: with every thread of the pool waiting for SQLite's write lock, its holder would wait for a thread.
"""

from dataclasses import dataclass
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Path, Query, Request

from app.api.adapters.importer import Importer
from app.api.evaluations.progress import ProgressStreams
from app.api.generate.lookups import TargetLookups
from app.api.http.access.usage_meter import UsageMeter
from app.api.http.request_metrics import RequestMetrics
from app.api.http.store_threads import StoreCheck
from app.api.jobs.event_stream import EventStreams
from app.api.openai.responses.background import BackgroundResponses
from app.api.webhooks.deliverer import Deliverer
from app.core.engine.client import EngineClient
from app.core.graders.python_process import PythonProcesses
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.storage.group_commit import GroupCommit
from app.core.storage.scratch import Scratch

MAX_PAGE = 200


@dataclass(frozen=True)
class Services:
    """Everything that lives as long as the app."""

    settings: Settings
    database: Database
    store: ArtifactStore
    streams: EventStreams
    progress: ProgressStreams
    engines: EngineClient
    lookups: TargetLookups
    request_metrics: RequestMetrics
    usage_meter: UsageMeter
    deliverer: Deliverer
    importer: Importer
    background_responses: BackgroundResponses
    python_graders: PythonProcesses
    commits: GroupCommit
    scratch: Scratch
    store_threads: CapacityLimiter
    store_check: StoreCheck


async def get_services(request: Request) -> Services:
    """The services of the app that received the request. Async, so that it takes no thread of its own."""
    return cast(Services, request.app.state.services)


def accepts(request: Request, media_type: str) -> bool:
    """Whether the `Accept` header names this media type."""
    return media_type in request.headers.get("accept", "")


ServicesDep = Annotated[Services, Depends(get_services)]
JobId = Annotated[str, Path(description="The job's id.", examples=["job_4kq1v9x2m7ahc3zt"])]
DatasetId = Annotated[str, Path(description="The dataset's id.", examples=["ds_4kq1v9x2m7ahc3zt"])]
AdapterName = Annotated[str, Path(description="The adapter's id or name.", examples=["support-bot"])]
ExportId = Annotated[str, Path(description="The export's id.", examples=["exp_4kq1v9x2m7ahc3zt"])]
After = Annotated[str | None, Query(max_length=64, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most items in the answer.")]
