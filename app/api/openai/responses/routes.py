"""/v1/responses: create, show, delete and cancel responses; list their input."""

from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.openapi.models import Example

from app.api.deps import Services, ServicesDep
from app.api.generate.served import served_headers
from app.api.generate.use import RequestUse
from app.api.http.access.auth import CallerDep
from app.api.openai.parameters import reject_parameter
from app.api.openai.responses.body import ResponseBody
from app.api.openai.responses.create import respond
from app.api.openai.responses.items import item_adapter
from app.api.openai.responses.planning import make_plan
from app.api.openai.responses.response import ItemList, ResponseDeleted, ResponseObject
from app.api.openai.responses.storage import read_row
from app.core.chat import responses as stored_responses
from app.core.errors.responses import ResponseNotInBackground
from app.core.storage import tables

router = APIRouter(prefix="/responses")

_MAX_PAGE = 100
_EXAMPLES: dict[str, Example] = {
    "text": {
        "summary": "Ask an adapter",
        "value": {"model": "support-bot", "input": "How do I cancel a job?", "max_output_tokens": 64},
    },
    "tools": {
        "summary": "Let it call a function",
        "value": {
            "model": "support-bot",
            "input": [{"role": "user", "content": "Is job 7 done?"}],
            "tools": [
                {
                    "type": "function",
                    "name": "show_job",
                    "description": "The state of a job.",
                    "parameters": {
                        "type": "object",
                        "properties": {"id": {"type": "string"}},
                        "required": ["id"],
                        "additionalProperties": False,
                    },
                    "strict": True,
                }
            ],
        },
    },
}
ResponseId = Annotated[str, Path(description="The response's id.", examples=["resp_4kq1v9x2m7ahc3zt"])]


@router.post(
    "",
    response_model=ResponseObject,
    summary="Create a response",
    responses={
        200: {
            "description": "The response. With `stream`: its events, from `response.created` to "
            "`response.completed`, `response.incomplete`, or `response.failed` and `error`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def create_response(
    body: Annotated[ResponseBody, Body(openapi_examples=_EXAMPLES)],
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
) -> object:
    """Answer a text or items, rendered with the model's chat template; perhaps with calls of functions."""
    plan = await make_plan(services, body)
    response.headers.update(served_headers(plan.target))
    use = RequestUse(services.usage_meter, caller, plan.target.name)
    if body.background:
        return await services.background_responses.start(plan, use)
    return await respond(plan, use, request=request, services=services)


@router.get("/{response_id}", summary="Show a response")
def show_response(
    response_id: ResponseId,
    services: ServicesDep,
    stream: Annotated[bool, Query(description="Only false: a stored response is not streamed.")] = False,
) -> ResponseObject:
    """A stored response, as it is now."""
    if stream:
        reject_parameter("stream", "a stored response is not streamed; leave it out")
    return _read(services, response_id)


@router.delete("/{response_id}", summary="Delete a response")
async def delete_response(response_id: ResponseId, services: ServicesDep) -> ResponseDeleted:
    """Delete a response. One that continues it can't be continued any more."""
    response = await to_thread.run_sync(_read, services, response_id)
    if not response.status.has_ended:
        await services.background_responses.cancel(response_id)
    await to_thread.run_sync(_delete, services, response_id)
    return ResponseDeleted(id=response_id)


@router.post("/{response_id}/cancel", summary="Cancel a response")
async def cancel_response(response_id: ResponseId, services: ServicesDep) -> ResponseObject:
    """End a response in the background; one that has ended is returned as it is."""
    response = await to_thread.run_sync(_read, services, response_id)
    if not response.background:
        raise ResponseNotInBackground(
            f"The response {response_id!r} is not made in the background.",
            hint="Close the connection of one that is being sent.",
        )
    if response.status.has_ended:
        return response
    await services.background_responses.cancel(response_id)
    return await to_thread.run_sync(_read, services, response_id)


@router.get("/{response_id}/input_items", summary="List the input of a response")
def list_input_items(
    response_id: ResponseId,
    services: ServicesDep,
    order: Annotated[Literal["asc", "desc"], Query(description="`desc`: the last one first.")] = "desc",
    after: Annotated[str | None, Query(max_length=128, description="Id of the last item seen.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE, description="Most items in the answer.")] = 20,
) -> ItemList:
    """All items that the model was given: those of the responses that this one continues, and its own."""
    with services.database.snapshot() as session:
        row = stored_responses.get(session, response_id)
        items = stored_responses.read_items(session, row)
    given = items[: len(items) - len(row.items) + row.input_count]
    if order == "desc":
        given.reverse()
    ids = [item["id"] for item in given]
    if after is not None and after not in ids:
        reject_parameter("after", f"the input of {response_id!r} has no item {after!r}")
    start = 0 if after is None else ids.index(after) + 1
    page = given[start : start + limit]
    return ItemList(
        data=[item_adapter.validate_python(item) for item in page],
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=start + limit < len(given),
    )


def _find(services: Services, response_id: str) -> tables.ResponseRow:
    with services.database.snapshot() as session:
        return stored_responses.get(session, response_id)


def _read(services: Services, response_id: str) -> ResponseObject:
    return read_row(_find(services, response_id))


def _delete(services: Services, response_id: str) -> None:
    with services.database.transaction() as session:
        stored_responses.delete_one(session, response_id)
