"""POST /jobs/preflight: what a job would do and need, computed by the engine's process."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Body
from sqlalchemy.orm import Session

from app.api.deps import Services, ServicesDep
from app.api.http.errors import EngineRefusal, documented
from app.api.jobs.routes import SPEC_EXAMPLES
from app.core.datasets import records as dataset_records
from app.core.datasets.unused_fields import describe_unused
from app.core.engine import workers
from app.core.engine.endpoints import EngineEndpoint, find_engine
from app.core.engine.messages import Failed
from app.core.engine.preflight import DatasetRef, Notice, Preflight, PreflightRequest
from app.core.engine.serving import find_serving
from app.core.jobs import abilities, continuation, speeds
from app.core.jobs.inputs import check_method
from app.core.specs.job import JobSpec
from app.core.specs.methods import Method

router = APIRouter(prefix="/jobs", tags=["Jobs"])


@router.post("/preflight", summary="Look at a job before it starts", responses=documented(404, 409, 503))
async def preflight(
    spec: Annotated[JobSpec, Body(openapi_examples=SPEC_EXAMPLES)], services: ServicesDep
) -> Preflight:
    """Tokens, cut and dropped rows, steps, memory, disk and time of a job; the body is that of `POST /jobs`.

    A job that can't run answers with the error that it would fail with. `warnings` says what should be known
    before it starts. Datasets that take long to read are read
    in part.
    """
    request, engine, speed, notices = await to_thread.run_sync(_prepare, services, spec)
    answer = await services.engines.request(engine, "/preflight", request, Preflight)
    if isinstance(answer, Failed):
        raise EngineRefusal(answer)
    answer.warnings.extend(notices)
    states = [engine.state, *(other.state for other in engine.others)]
    answer.serving = find_serving(states, spec.base_model, answer.serving.reason)
    return _with_measured_speed(answer, speed) if speed else answer


def _prepare(
    services: Services, spec: JobSpec
) -> tuple[PreflightRequest, EngineEndpoint, float | None, list[Notice]]:
    with services.database.snapshot() as session:
        workers.check_base_model(session, services.settings, spec.base_model)
        abilities.check_workers(session, services.settings, spec)
        dataset, notices = find_dataset(session, spec.dataset, method=spec.method)
        validation_dataset = None
        if spec.validation_dataset:
            validation_dataset, more = find_dataset(
                session, spec.validation_dataset, method=spec.method, param="validation_dataset"
            )
            notices += [
                Notice(code=one.code, message=f"The validation dataset: {one.message}") for one in more
            ]
        if spec.continue_from:
            spec = continuation.resolve(session, spec)
        engine = find_engine(session, services.settings, base_model=spec.base_model)
        speed = speeds.find_tokens_per_second(session, spec)
    request = PreflightRequest(spec=spec, dataset=dataset, validation_dataset=validation_dataset)
    return request, engine, speed, notices


def find_dataset(
    session: Session, dataset_id: str, *, method: Method | None = None, param: str = "dataset"
) -> tuple[DatasetRef, list[Notice]]:
    """A reference to a dataset's files for the engine, and what should be known about its fields.

    Raises DatasetNotFound and DatasetNotReady, and DatasetUnfit where `method` does not learn its rows.
    """
    dataset = dataset_records.get_ready(session, dataset_id, param=param)
    if method:
        check_method(dataset, method, param=param)
    unused = describe_unused(dataset_records.find_unused(dataset))
    return (
        DatasetRef(artifact=dataset.artifact, rows=dataset.rows, size_bytes=dataset.size_bytes),
        [Notice(code="unused_fields", message=unused)] if unused else [],
    )


def _with_measured_speed(answer: Preflight, tokens_per_second: float) -> Preflight:
    tokens = answer.time.seconds * answer.time.tokens_per_second
    measured = answer.time.model_copy(
        update={
            "seconds": tokens / tokens_per_second,
            "tokens_per_second": tokens_per_second,
            "basis": "measured",
        }
    )
    return answer.model_copy(update={"time": measured})
