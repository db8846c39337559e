"""GET and DELETE /v1/models: base models, aliases and adapters alike. Also resolves a request's `model`."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.api.base_models.routes import list_models as list_base_models
from app.api.deps import Services, ServicesDep
from app.api.http.store_threads import in_store_threads
from app.api.openai.lists import OpenAIPage
from app.core.adapters import records as adapter_records
from app.core.adapters.names import is_hub_id
from app.core.adapters.targets import Target, Targets
from app.core.aliases import records as alias_records
from app.core.engine import workers
from app.core.errors import InvalidRequest
from app.core.errors.adapters import AdapterNotFound
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage import tables

router = APIRouter(prefix="/models")

_MAX_MODELS = 1000
ModelName = Annotated[
    str,
    Path(description="An alias, a base model's name, or an adapter's id or name.", examples=["support-bot"]),
]


class OpenAIModel(BaseModel):
    """A base model, an alias or an adapter."""

    id: str = Field(description="`model` takes it.", examples=["support-bot"])
    object: Literal["model"] = Field("model", description="Always `model`.")
    created: int = Field(
        description="When the adapter was finished or the alias made, in seconds since 1970; 0: a base model."
    )
    owned_by: str = Field(
        description="`tunesmith`: an adapter or an alias. `local` or `hub`: a base model from there."
    )
    adapter: str | None = Field(None, description="Not OpenAI's. The adapter's id.")
    base_model: str | None = Field(None, description="Not OpenAI's. What the adapter was trained against.")
    alias_of: dict[str, float] | None = Field(
        None, description="Not OpenAI's. Of an alias: the models that serve it, and each one's share."
    )


class OpenAIModelList(OpenAIPage[OpenAIModel]):
    """What `model` may name: base models first, then aliases, then adapters, the newest first."""


class ModelDeleted(BaseModel):
    """The adapter is gone."""

    id: str = Field(description="The adapter's id or name, as it was asked for.")
    object: Literal["model"] = Field("model", description="Always `model`.")
    deleted: Literal[True] = Field(True, description="Always true.")


@router.get("", summary="List models")
def list_models(
    services: ServicesDep,
    after: Annotated[
        str | None, Query(max_length=400, description="Not OpenAI's. Id of the last model seen.")
    ] = None,
    limit: Annotated[
        int, Query(ge=1, le=_MAX_MODELS, description="Not OpenAI's. Most adapters in the answer.")
    ] = _MAX_MODELS,
) -> OpenAIModelList:
    """Base models that are here, then aliases, then adapters; `after` shows more adapters."""
    with services.database.snapshot() as session:
        aliases = [_alias(row) for row in alias_records.find_all(session)]
    taken = {model.id for model in aliases}
    # A request that names an alias never means the base model, should one of that name have appeared.
    found = [model for model in _base_models(services) if model.id not in taken] + aliases
    taken = {model.id for model in found}
    with services.database.snapshot() as session:
        # After a base model or an alias, the list goes on with the first adapter.
        last = None if after is None or after in taken else _get_adapter(session, after).id
        rows, cursor = adapter_records.find_page(session, after=last, limit=limit)
    shown = found if after is None else []
    return OpenAIModelList(data=shown + [_adapter(row, taken) for row in rows], has_more=cursor is not None)


@router.get("/{model:path}", summary="Show a model")
def show_model(model: ModelName, services: ServicesDep) -> OpenAIModel:
    """One model, by the name that `model` takes."""
    with services.database.snapshot() as session:
        alias = alias_records.find(session, model)
    if alias is not None:
        return _alias(alias)
    known = {found.id: found for found in _base_models(services)}
    if model in known:
        return known[model]
    with services.database.snapshot() as session:
        return _adapter(_get_adapter(session, model), set(known))


@router.delete("/{model:path}", summary="Delete an adapter")
@in_store_threads
def delete_model(model: ModelName, services: ServicesDep) -> ModelDeleted:
    """Delete an adapter and its files. Base models and aliases stay."""
    with services.database.snapshot() as session:
        if alias_records.find(session, model) is not None:
            raise InvalidRequest(
                f"{model!r} is an alias; only adapters can be deleted here.",
                param="model",
                hint=f"DELETE /aliases/{model} deletes it.",
            )
    if any(found.id == model for found in _base_models(services)):
        raise InvalidRequest(f"{model!r} is a base model; only adapters can be deleted.", param="model")
    with services.database.transaction() as session:
        artifact = adapter_records.delete(session, _get_adapter(session, model).id)
    services.store.discard(artifact)
    return ModelDeleted(id=model)


async def find_target(
    services: Services,
    model: str,
    quantization: QuantizationSpec | None,
    *,
    subject: str | None = None,
    served_before: str | None = None,
) -> Target:
    """What generates for this name, as `Targets.find_named` finds it.

    Raises AdapterNotFound, ModelNotAllowed, NoEngine, and InvalidRequest for an adapter's quantization.
    """

    def find(targets: Targets) -> Target:
        try:
            return targets.find_named(
                model, quantization=quantization, subject=subject, served_before=served_before
            )
        except AdapterNotFound:
            raise _not_found(model) from None

    return await services.lookups.find(find, model)


def find_origin(session: Session, settings: Settings, model: str) -> tuple[str, str | None]:
    """The base model that a job with this `model` trains, and the adapter's id where it names an adapter.

    Raises AdapterNotFound, AliasAmbiguous, UnknownModel and ModelNotAllowed.
    """
    alias = alias_records.find(session, model)
    if alias is not None:
        target = alias_records.get_only_target(alias)
        return target.base_model, target.adapter
    if model not in workers.find_local_names(session, settings):
        try:
            adapter = adapter_records.get(session, model)
            return adapter.base_model, adapter.id
        except AdapterNotFound:
            if not is_hub_id(model):
                raise _not_found(model) from None
    workers.check_base_model(session, settings, model)
    return model, None


def _base_models(services: Services) -> list[OpenAIModel]:
    found = list_base_models(services).data
    return [OpenAIModel(id=model.name, created=0, owned_by=model.source) for model in found]


def _alias(row: tables.AliasRow) -> OpenAIModel:
    targets = alias_records.targets_of(row)
    return OpenAIModel(
        id=row.name,
        created=int(row.created_at.timestamp()),
        owned_by="tunesmith",
        alias_of={target.name: target.share for target in targets},
    )


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
