"""GET /models: base models in the models folder, on the allow-list, and in engines now."""

from typing import Literal, TypedDict

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.deps import ServicesDep
from app.api.schemas import Page
from app.core.engine import base_models, workers
from app.core.engine.base_models import LocalModel
from app.core.engine.serving import Serving, find_serving
from app.core.engine.state import EngineState

State = Literal["loaded", "loading", "on_disk", "on_hub"]


class BaseModelRead(BaseModel):
    """A base model that may be named."""

    name: str = Field(description="`base_model` takes it.", examples=["SmolLM2-135M-Instruct"])
    source: Literal["local", "hub"] = Field(
        description="`local`: in the models folder. `hub`: the worker downloads it when it is first needed."
    )
    architecture: str | None = Field(None, description="Its class in transformers, from `config.json`.")
    context_length: int | None = Field(None, description="Most tokens of prompt and answer together.")
    size_bytes: int | None = Field(None, description="Size of the files on disk.")
    loaded: bool = Field(description="Whether an engine holds it now, so that it answers at once.")
    state: State = Field(
        description="`loaded`: it answers at once. `loading`: an engine is loading it, and requests wait. "
        "`on_disk`: the first request loads it, which may wait until another base model is not needed. "
        "`on_hub`: the same, and it may have to be downloaded first."
    )
    serving: Serving | None = Field(
        None, description="How the engine serves it without an adapter; null: not known before it is loaded."
    )
    waiting: int = Field(0, description="Requests that wait for it, as of the worker's last word.")


class BaseModelPage(Page[BaseModelRead]):
    """The base models that may be named."""

    any_hub_model: bool = Field(description="Whether any other Hub id may be named too: no allow-list.")


class _InEngines(TypedDict):
    loaded: bool
    state: State
    waiting: int


router = APIRouter(prefix="/models", tags=["Models"])


@router.get("", summary="List base models")
def list_models(services: ServicesDep) -> BaseModelPage:
    """Base models that a job or `/generate` may name, with their limits."""
    settings = services.settings
    with services.database.snapshot() as session:
        states = workers.engine_states(session, settings)
    named = {*settings.allowed_models, *(name for state in states for name in _names(state))}
    local = base_models.find_local(settings)
    listed = [_local(model, states) for model in local]
    elsewhere = sorted(name for name in named - {model.name for model in local} if "/" in name)
    listed += [
        BaseModelRead(
            name=name,
            source="hub",
            serving=find_serving(states, name, None) if _is_known(name, states) else None,
            **_in_engines(name, "on_hub", states),
        )
        for name in elsewhere
    ]
    return BaseModelPage(data=listed, next=None, any_hub_model=not settings.allowed_models)


def _names(state: EngineState) -> list[str]:
    loading = [state.loading.base_model] if state.loading else []
    return [base.name for base in (*state.loaded, *loading)]


def _local(model: LocalModel, states: list[EngineState]) -> BaseModelRead:
    return BaseModelRead(
        name=model.name,
        source="local",
        architecture=model.architecture,
        context_length=model.context_length,
        size_bytes=model.size_bytes,
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
