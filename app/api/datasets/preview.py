"""GET /datasets/{id}/preview: rows in a base model's tokens, each marked trained or not."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query

from app.api.deps import DatasetId, Services, ServicesDep
from app.api.http.errors import EngineRefusal, documented
from app.api.jobs.preflight import find_dataset
from app.core.engine import workers
from app.core.engine.endpoints import EngineEndpoint, find_engine
from app.core.engine.messages import Failed
from app.core.engine.preflight import DatasetRef, Notice, Preview, PreviewRequest
from app.core.specs.patterns import MODEL_NAME

router = APIRouter(prefix="/datasets", tags=["Datasets"])

_MAX_ROWS = 50


@router.get("/{dataset_id}/preview", summary="Preview a dataset", responses=documented(404, 409, 503))
async def preview_dataset(
    dataset_id: DatasetId,
    services: ServicesDep,
    base_model: Annotated[
        str,
        Query(
            max_length=200,
            pattern=MODEL_NAME,
            description="The model whose chat template and tokens are shown.",
            examples=["SmolLM2-135M-Instruct"],
        ),
    ],
    limit: Annotated[int, Query(ge=1, le=_MAX_ROWS, description="Most rows in the answer.")] = 5,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="`next` of the page before: a line of the file.")
    ] = 0,
    assistant_only_loss: Annotated[
        bool, Query(description="Mark as a job with this setting would train.")
    ] = False,
    max_seq_length: Annotated[
        int | None, Query(ge=8, le=1 << 24, description="Cut as a job with this setting would cut.")
    ] = None,
) -> Preview:
    """Rows rendered with the model's template, token by token, as training will read them."""

    def prepare() -> tuple[PreviewRequest, EngineEndpoint, list[Notice]]:
        with services.database.snapshot() as session:
            workers.check_base_model(session, services.settings, base_model)
        reference, notices, engine = _find(services, dataset_id, base_model)
        request = PreviewRequest(
            base_model=base_model,
            dataset=reference,
            after=after,
            limit=limit,
            assistant_only_loss=assistant_only_loss,
            max_seq_length=max_seq_length,
        )
        return request, engine, notices

    request, engine, notices = await to_thread.run_sync(prepare)
    answer = await services.engines.request(engine, "/preview", request, Preview)
    if isinstance(answer, Failed):
        raise EngineRefusal(answer)
    answer.warnings.extend(notices)
    return answer


def _find(
    services: Services, dataset_id: str, base_model: str
) -> tuple[DatasetRef, list[Notice], EngineEndpoint]:
    with services.database.snapshot() as session:
        dataset, notices = find_dataset(session, dataset_id)
        return dataset, notices, find_engine(session, services.settings, base_model=base_model)
