"""/v1/evals: create, list, show, change and delete evals."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query
from fastapi.openapi.models import Example

from app.api.deps import MAX_PAGE, ServicesDep
from app.api.openai.evals.bodies import EvalBody, EvalUpdateBody
from app.api.openai.evals.objects import EvalDeleted, EvalObject
from app.api.openai.lists import OpenAIPage
from app.core.evaluations import definitions
from app.core.evaluations.submission import check_graders
from app.core.storage import paging

router = APIRouter(prefix="/evals")

_EXAMPLES: dict[str, Example] = {
    "capitals": {
        "summary": "Whether an answer names the capital",
        "value": {
            "name": "capitals",
            "data_source_config": {
                "type": "custom",
                "item_schema": {"type": "object", "properties": {"capital": {"type": "string"}}},
                "include_sample_schema": True,
            },
            "testing_criteria": [
                {
                    "type": "string_check",
                    "name": "names it",
                    "input": "{{sample.output_text}}",
                    "reference": "{{item.capital}}",
                    "operation": "ilike",
                }
            ],
        },
    }
}
EvalId = Annotated[str, Path(description="The eval's id.", examples=["eval_4kq1v9x2m7ahc3zt"])]
After = Annotated[str | None, Query(max_length=64, description="Id of the last item seen.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most items in the answer.")]
Order = Annotated[paging.Order, Query(description="By the time they were made.")]


@router.post("", summary="Create an eval")
def create_eval(
    body: Annotated[EvalBody, Body(openapi_examples=_EXAMPLES)], services: ServicesDep
) -> EvalObject:
    """Store graders for rows of some shape; runs grade models with them."""
    content: dict[str, Any] = {
        "data_source_config": body.data_source_config.as_shown(),
        "testing_criteria": [
            grader.model_dump(mode="json", by_alias=True, exclude_unset=True)
            for grader in body.testing_criteria
        ],
        "metadata": body.metadata or {},
    }
    with services.database.transaction() as session:
        check_graders(session, services.settings, body.testing_criteria)
        return EvalObject.from_row(definitions.create(session, content, name=body.name))


@router.get("", summary="List evals")
def list_evals(
    services: ServicesDep,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
    order_by: Annotated[Literal["created_at"], Query(description="Only `created_at`.")] = "created_at",
) -> OpenAIPage[EvalObject]:
    """Evals, the oldest first."""
    with services.database.snapshot() as session:
        found, has_more = definitions.find_page(session, order=order, after=after, limit=limit)
        return OpenAIPage(data=[EvalObject.from_row(row) for row in found], has_more=has_more)


@router.get("/{eval_id}", summary="Show an eval")
def show_eval(eval_id: EvalId, services: ServicesDep) -> EvalObject:
    """One eval."""
    with services.database.snapshot() as session:
        return EvalObject.from_row(definitions.get(session, eval_id))


@router.post("/{eval_id}", summary="Change an eval")
def update_eval(eval_id: EvalId, body: EvalUpdateBody, services: ServicesDep) -> EvalObject:
    """Change an eval's name or metadata."""
    with services.database.transaction() as session:
        row = definitions.get(session, eval_id)
        if body.name is not None:
            row.name = body.name
        if "metadata" in body.model_fields_set:
            row.content = {**row.content, "metadata": body.metadata or {}}
        session.flush()
        return EvalObject.from_row(row)


@router.delete("/{eval_id}", summary="Delete an eval")
def delete_eval(eval_id: EvalId, services: ServicesDep) -> EvalDeleted:
    """Delete an eval with its runs. Runs that have not ended are cancelled."""
    with services.database.transaction() as session:
        definitions.delete(session, eval_id)
    return EvalDeleted(eval_id=eval_id)
