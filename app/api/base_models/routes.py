"""Base models: in the models folder, downloaded, allowed, and in engines now; search, memory, deletion."""

from typing import Annotated, TypedDict

import anyio
from anyio import to_thread
from fastapi import APIRouter, Path, Query

from app.api.base_models import removal
from app.api.base_models.schemas import (
    BaseModelNeedsRead,
    BaseModelPage,
    BaseModelRead,
    DeletedModelRead,
    HubModelRead,
    HubSearchRead,
    State,
)
from app.api.deps import Services, ServicesDep
from app.api.http.errors import EngineRefusal, documented
from app.core.base_models.messages import Fit, FitRequest, HubSearch, HubSearchRequest
from app.core.base_models.needs import Needs, find_needs
from app.core.engine import base_models, workers
from app.core.engine.base_models import DownloadedModel, LocalModel
from app.core.engine.endpoints import EngineEndpoint, find_engine
from app.core.engine.messages import Failed
from app.core.engine.serving import find_serving
from app.core.engine.state import EngineState
from app.core.errors import Unavailable
from app.core.specs.patterns import MODEL_NAME

# Longer than an engine waits for the Hub.
_SEARCH_SECONDS = 20.0


class _InEngines(TypedDict):
    loaded: bool
    state: State
    waiting: int


router = APIRouter(prefix="/models", tags=["Models"])


@router.get("", summary="List base models")
def list_models(services: ServicesDep) -> BaseModelPage:
    """Base models that a job or `/generate` may name, with their limits, sizes, and what needs them."""
    settings = services.settings
    with services.database.snapshot() as session:
        states = workers.engine_states(session, settings)
        downloaded = {model.name: model for model in workers.find_downloaded(session, settings)}
        needs = find_needs(session)
        local = workers.find_local(session, settings)
    named = {*settings.allowed_models, *downloaded, *(name for state in states for name in _names(state))}
    listed = [_local(model, states, needs) for model in local]
    elsewhere = sorted(name for name in named - {model.name for model in local} if "/" in name)
    listed += [_hub(name, downloaded.get(name), states, needs) for name in elsewhere]
    return BaseModelPage(data=listed, next=None, any_hub_model=not settings.allowed_models)


@router.get("/search", summary="Search the Hub for base models")
async def search_hub(
    services: ServicesDep,
    query: Annotated[str, Query(max_length=200, description="Words of the name; empty: any.")] = "",
    limit: Annotated[int, Query(ge=1, le=50, description="Most models in the answer.")] = 20,
) -> HubSearchRead:
    """Models of the Hub that may be trained. Where the Hub can't be asked, `state` and `message` say why."""
    engine, here = await to_thread.run_sync(_prepare_search, services)
    if engine is None:
        return HubSearchRead(
            state="no_engine",
            message="No worker that serves is running, and it is the worker that asks.",
            data=[],
        )
    found: HubSearch | Failed | None = None
    with anyio.move_on_after(_SEARCH_SECONDS):
        try:
            request = HubSearchRequest(query=query, limit=limit)
            found = await services.engines.request(engine, "/hub/search", request, HubSearch)
        except Unavailable as error:
            return HubSearchRead(state="no_engine", message=error.message, data=[])
    if not isinstance(found, HubSearch):
        message = found.message if found else f"The worker did not answer in {_SEARCH_SECONDS:.0f} s."
        return HubSearchRead(state="unreachable", message=message, data=[])
    allowed = [model for model in found.data if base_models.is_allowed(model.name, services.settings)]
    data = [HubModelRead(**model.model_dump(), downloaded=model.name in here) for model in allowed]
    return HubSearchRead(state=found.state, message=found.message, data=data)


@router.get("/fit", summary="Memory of a job on a base model", responses=documented(404, 503))
async def estimate_fit(
    services: ServicesDep,
    base_model: Annotated[
        str, Query(pattern=MODEL_NAME, max_length=200, description="Hub id, or name of a local model.")
    ],
) -> Fit:
    """Whether a job of the default QLoRA settings fits into the memory of the worker's device.

    By the arithmetic of `POST /jobs/preflight`, for rows of 1,024 tokens, against all memory of the device.
    Of a Hub model that is not here, the config alone is downloaded. A model that can't be trained answers
    with the error that a job would fail with.
    """
    engine = await to_thread.run_sync(_find_engine_for, services, base_model)
    answer = await services.engines.request(engine, "/fit", FitRequest(base_model=base_model), Fit)
    if isinstance(answer, Failed):
        raise EngineRefusal(answer)
    return answer


@router.delete("/{name:path}", summary="Delete a downloaded base model", responses=documented(404, 409, 503))
async def delete_model(
    name: Annotated[
        str,
        Path(max_length=200, description="Its Hub id.", examples=["HuggingFaceTB/SmolLM2-135M-Instruct"]),
    ],
    services: ServicesDep,
) -> DeletedModelRead:
    """Delete a model of the Hub from the disk. It is downloaded again when something needs it.

    Refused while a job, an export or an import that has not ended needs it, or an engine holds it, and for
    models in the models folder, where a person has put them.
    """
    return await removal.remove(services, name)


def _prepare_search(services: Services) -> tuple[EngineEndpoint | None, set[str]]:
    with services.database.snapshot() as session:
        found = workers.find_downloaded(session, services.settings)
        try:
            engine = find_engine(session, services.settings, base_model="")
        except Unavailable:
            engine = None
    return engine, {model.name for model in found if model.is_whole}


def _find_engine_for(services: Services, name: str) -> EngineEndpoint:
    with services.database.snapshot() as session:
        workers.check_base_model(session, services.settings, name)
        return find_engine(session, services.settings, base_model=name)


def _names(state: EngineState) -> list[str]:
    loading = [state.loading.base_model] if state.loading else []
    return [base.name for base in (*state.loaded, *loading)]


def _hub(
    name: str, model: DownloadedModel | None, states: list[EngineState], needs: dict[str, Needs]
) -> BaseModelRead:
    is_known = _is_known(name, states) or model is not None
    found = model.description if model else base_models.ModelDescription()
    return BaseModelRead(
        name=name,
        source="hub",
        architecture=found.architecture,
        context_length=found.context_length,
        size_bytes=model.size_bytes if model else None,
        used_at=model.used_at if model else None,
        needed_by=BaseModelNeedsRead.from_needs(needs.get(name, Needs())),
        serving=find_serving(states, name, found.obstacle) if is_known else None,
        **_in_engines(name, "on_disk" if model and model.is_whole else "on_hub", states),
    )


def _local(model: LocalModel, states: list[EngineState], needs: dict[str, Needs]) -> BaseModelRead:
    return BaseModelRead(
        name=model.name,
        source="local",
        architecture=model.architecture,
        context_length=model.context_length,
        size_bytes=model.size_bytes,
        needed_by=BaseModelNeedsRead.from_needs(needs.get(model.name, Needs())),
        serving=find_serving(states, model.name, model.obstacle),
        **_in_engines(model.name, "on_disk", states),
    )


def _is_known(name: str, states: list[EngineState]) -> bool:
    return any(one.base_model == name for state in states for one in state.served)


def _in_engines(name: str, elsewhere: State, states: list[EngineState]) -> _InEngines:
    """The state of a base model in the engines; `elsewhere` is its state where no engine has it."""
    is_loaded = any(base.name == name for state in states for base in state.loaded)
    is_loading = any(state.loading and state.loading.base_model.name == name for state in states)
    counts = [one.count for state in states for one in state.waiting if one.base_model.name == name]
    return {
        "loaded": is_loaded,
        "state": "loaded" if is_loaded else "loading" if is_loading else elsewhere,
        "waiting": sum(counts),
    }
