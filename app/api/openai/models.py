"""GET and DELETE /v1/models: base models and adapters alike. Also resolves a request's `model`."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.api.base_models.routes import list_models as list_base_models
from app.api.deps import MAX_PAGE, Services, ServicesDep
from app.api.generate.answers import Target, find_adapter, find_base_model
from app.core.adapters import records as adapter_records
from app.core.engine import base_models
from app.core.errors import InvalidRequest
from app.core.errors.adapters import AdapterNotFound
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.specs.patterns import MODEL_NAME
from app.core.storage import tables

router = APIRouter(prefix="/models")

_MODEL_NAME = re.compile(MODEL_NAME)
ModelName = Annotated[
    str, Path(description="A base model's name, or an adapter's id or name.", examples=["support-bot"])
]


class OpenAIModel(BaseModel):
    """A base model or an adapter."""

    id: str = Field(description="`model` takes it.", examples=["support-bot"])
    object: Literal["model"] = Field("model", description="Always `model`.")
    created: int = Field(description="When the adapter was finished, in seconds since 1970; 0: a base model.")
    owned_by: str = Field(description="`tunesmith`: an adapter. `local` or `hub`: a base model from there.")
    adapter: str | None = Field(None, description="Not OpenAI's. The adapter's id.")
    base_model: str | None = Field(None, description="Not OpenAI's. What the adapter was trained against.")


class OpenAIModelList(BaseModel):
    """Everything that `model` may name."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[OpenAIModel] = Field(description="Base models first, then adapters, the newest first.")


class ModelDeleted(BaseModel):
    """The adapter is gone."""

    id: str = Field(description="The adapter's id or name, as it was asked for.")
    object: Literal["model"] = Field("model", description="Always `model`.")
    deleted: Literal[True] = Field(True, description="Always true.")


@router.get("", summary="List models")
def list_models(services: ServicesDep) -> OpenAIModelList:
    """Base models that are here, and every adapter."""
    found = _base_models(services)
    taken = {model.id for model in found}
    with services.database.snapshot() as session:
        found += [_adapter(row, taken) for row in _all_adapters(session)]
    return OpenAIModelList(data=found)


@router.get("/{model:path}", summary="Show a model")
def show_model(model: ModelName, services: ServicesDep) -> OpenAIModel:
    """One model, by the name that `model` takes."""
    known = {found.id: found for found in _base_models(services)}
    if model in known:
        return known[model]
    with services.database.snapshot() as session:
        return _adapter(_get_adapter(session, model), set(known))


@router.delete("/{model:path}", summary="Delete an adapter")
def delete_model(model: ModelName, services: ServicesDep) -> ModelDeleted:
    """Delete an adapter and its files. Base models stay."""
    if any(found.id == model for found in _base_models(services)):
        raise InvalidRequest(f"{model!r} is a base model; only adapters can be deleted.", param="model")
    with services.database.transaction() as session:
        artifact = adapter_records.delete(session, _get_adapter(session, model).id)
    services.store.delete(artifact)
    return ModelDeleted(id=model)


def find_target(services: Services, model: str, quantization: QuantizationSpec | None) -> Target:
    """What generates for this name: a base model in the models folder, else an adapter, else a Hub id.

    Raises AdapterNotFound, ModelNotAllowed, NoEngine, and InvalidRequest for an adapter's quantization.
    """
    settings = services.settings
    with services.database.snapshot() as session:
        if base_models.find_folder(model, settings.models_folder):
            return find_base_model(session, settings, model, quantization=quantization)
        try:
            return find_adapter(session, settings, model, quantization=quantization)
        except AdapterNotFound:
            if "/" in model and _MODEL_NAME.fullmatch(model):
                return find_base_model(session, settings, model, quantization=quantization)
            raise _not_found(model) from None


def find_origin(session: Session, settings: Settings, model: str) -> tuple[str, str | None]:
    """The base model that a job with this `model` trains, and the adapter's id where it names an adapter.

    Raises AdapterNotFound, UnknownModel and ModelNotAllowed.
    """
    if base_models.find_folder(model, settings.models_folder) is None:
        try:
            adapter = adapter_records.get(session, model)
            return adapter.base_model, adapter.id
        except AdapterNotFound:
            if not ("/" in model and _MODEL_NAME.fullmatch(model)):
                raise _not_found(model) from None
    base_models.check(model, settings)
    return model, None


def _base_models(services: Services) -> list[OpenAIModel]:
    found = list_base_models(services).data
    return [OpenAIModel(id=model.name, created=0, owned_by=model.source) for model in found]


def _all_adapters(session: Session) -> list[tables.AdapterRow]:
    rows, cursor = adapter_records.find_page(session, after=None, limit=MAX_PAGE)
    while cursor is not None:
        page, cursor = adapter_records.find_page(session, after=cursor, limit=MAX_PAGE)
        rows += page
    return rows


def _get_adapter(session: Session, id_or_name: str) -> tables.AdapterRow:
    try:
        return adapter_records.get(session, id_or_name)
    except AdapterNotFound:
        raise _not_found(id_or_name, *adapter_records.explain_missing(session, id_or_name)) from None


def _adapter(row: tables.AdapterRow, taken: set[str]) -> OpenAIModel:
    """An adapter in OpenAI's format: by its name, or by its id where a base model has that name."""
    return OpenAIModel(
        id=row.id if row.name in taken else row.name,
        created=int(row.created_at.timestamp()),
        owned_by="tunesmith",
        adapter=row.id,
        base_model=row.base_model,
    )


def _not_found(model: str, reason: str = "", hint: str = "") -> AdapterNotFound:
    return AdapterNotFound(
        f"There is no model {model!r}{reason}.", param="model", hint=f"{hint}GET /v1/models lists them."
    )
