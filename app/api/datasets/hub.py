"""POST /datasets with a JSON body: a dataset of the Hub, which a worker fetches, never this process."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi.routing import APIRoute
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.routing import Match
from starlette.types import Scope

from app.api.datasets.schemas import DatasetRead
from app.api.deps import ServicesDep
from app.api.http.bodies.limit import is_json
from app.api.http.idempotency import IdempotentRequestDep
from app.core.datasets import fetches, records as dataset_records
from app.core.datasets.fetches import HubSource
from app.core.datasets.formats import check_column_map
from app.core.datasets.inspection import OnProblem
from app.core.datasets.unused_fields import OnUnused


class HubDataset(HubSource):
    """A dataset of the Hub, and how to read it."""

    name: str | None = Field(
        None, min_length=1, max_length=255, description="Default: the dataset's name on the Hub."
    )
    column_map: dict[str, str] = Field(
        {}, description='Its columns for those of a format: `{"prompt": "question"}`.'
    )
    on_problem: OnProblem = Field(
        OnProblem.REFUSE, description="What to do where some rows can't be used.", examples=["refuse", "skip"]
    )
    on_unused: OnUnused = Field(
        OnUnused.REFUSE,
        description="What to do where fields that change what is learned are not used.",
        examples=["refuse", "ignore"],
    )


class _JsonRoute(APIRoute):
    """Matches requests with a JSON body alone; others of the same path are uploads."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return (match, found) if is_json(scope) else (Match.NONE, {})


# Included before the upload's route, and not in the schema: OpenAPI has one operation for a path and method.
router = APIRouter(prefix="/datasets", tags=["Datasets"], route_class=_JsonRoute)


@router.post("", status_code=202, summary="Name a Hub dataset", include_in_schema=False)
def fetch_dataset(
    body: Annotated[HubDataset, Body()],
    idempotent: IdempotentRequestDep,
    response: Response,
    services: ServicesDep,
) -> DatasetRead:
    """Ask a worker to fetch a dataset of the Hub."""
    check_column_map(body.column_map)
    source = HubSource.model_validate(body.model_dump(include=set(HubSource.model_fields)))

    def create(session: Session) -> DatasetRead:
        row = fetches.submit(
            session,
            source,
            name=body.name or body.hub_dataset,
            column_map=body.column_map,
            on_problem=body.on_problem,
            on_unused=body.on_unused,
            max_waiting=services.settings.max_queued_jobs,
        )
        return DatasetRead.from_row(row)

    dataset = idempotent.create(create, find=find_dataset)
    response.headers["location"] = f"/datasets/{dataset.id}"
    return dataset


def find_dataset(session: Session, dataset_id: str) -> DatasetRead:
    """A dataset as the API shows it. Raises DatasetNotFound."""
    return DatasetRead.from_row(dataset_records.get(session, dataset_id))


def json_body() -> dict[str, Any]:
    """`openapi_extra=` of the upload's route: documents this JSON body in addition to the form."""
    schema = HubDataset.model_json_schema()
    definitions = schema.pop("$defs")
    for name in ("on_problem", "on_unused"):
        # `$ref` to `$defs` does not resolve inside the document, so the enum is written out.
        field = schema["properties"][name]
        choices = definitions[field.pop("$ref").rsplit("/", 1)[-1]]["enum"]
        field |= {"type": "string", "enum": choices}
    example = {"hub_dataset": "HuggingFaceH4/no_robots", "split": "train"}
    return {"requestBody": {"content": {"application/json": {"schema": schema, "example": example}}}}
