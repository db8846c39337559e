"""Base models that may be named: those in the models folder, those on the allow-list, those loaded now."""

from fastapi import APIRouter

from app.api.deps import ServicesDep
from app.api.schemas import Model, Models
from app.core import models, workers
from app.core.messages import EngineState
from app.core.models import LocalModel

router = APIRouter(prefix="/models", tags=["Models"])


@router.get("", summary="List base models")
def list_models(services: ServicesDep) -> Models:
    """Base models that a job or `/generate` may name, with their limits."""
    settings = services.settings
    with services.database.snapshot() as session:
        serving = workers.find_alive(session, lease_seconds=settings.lease_seconds, role="serve")
    states = [EngineState.model_validate(worker.engine_state) for worker in serving if worker.engine_state]
    loaded = {state.base_model.name for state in states if state.base_model}
    local = models.find_local(settings)
    elsewhere = sorted({*settings.allowed_models, *loaded} - {model.name for model in local})
    listed = [_local(model, loaded) for model in local]
    listed += [Model(name=name, source="hub", loaded=name in loaded) for name in elsewhere if "/" in name]
    return Models(data=listed, next=None, any_hub_model=not settings.allowed_models)


def _local(model: LocalModel, loaded: set[str]) -> Model:
    return Model(
        name=model.name,
        source="local",
        architecture=model.architecture,
        context_length=model.context_length,
        size_bytes=model.size_bytes,
        loaded=model.name in loaded,
    )
