"""/v1/evals/{id}/runs: run an eval on rows, and read what came of it."""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.openapi.models import Example
from sqlalchemy.orm import Session

from app.api.deps import Services, ServicesDep
from app.api.http.access.auth import CallerDep
from app.api.openai.evals.bodies import (
    InputReference,
    JsonlDataSource,
    ModelDataSource,
    RunBody,
    RunSampling,
    SourceRow,
)
from app.api.openai.evals.objects import (
    STATES,
    EvalRunDeleted,
    EvalRunObject,
    OutputItem,
    RunStatus,
    item_id,
    outcome,
)
from app.api.openai.evals.routes import After, EvalId, Limit, Order
from app.api.openai.evals.rows import read_rows
from app.api.openai.lists import OpenAIPage
from app.core.errors import InvalidRequest
from app.core.errors.evaluations import EvalNotFound
from app.core.evaluations import definitions, given_answers, records, results, rows as row_pages, submission
from app.core.evaluations.rows import SideBySide
from app.core.evaluations.spec import EvaluationRequest
from app.core.graders.shapes import AnyGrader, grader_adapter
from app.core.keys.records import Caller
from app.core.storage import tables

router = APIRouter(prefix="/evals/{eval_id}/runs")

_EXAMPLES: dict[str, Example] = {
    "completions": {
        "summary": "A model answers rows",
        "value": {
            "name": "base model",
            "data_source": {
                "type": "completions",
                "model": "SmolLM2-135M-Instruct",
                "source": {
                    "type": "file_content",
                    "content": [{"item": {"country": "Norway", "capital": "Oslo"}}],
                },
                "input_messages": {
                    "type": "template",
                    "template": [{"role": "user", "content": "What is the capital of {{item.country}}?"}],
                },
                "sampling_params": {"temperature": 0, "max_completion_tokens": 32},
            },
        },
    }
}
RunId = Annotated[str, Path(description="The run's id.", examples=["ev_4kq1v9x2m7ahc3zt"])]


@router.post("", summary="Run an eval")
def create_run(
    eval_id: EvalId,
    body: Annotated[RunBody, Body(openapi_examples=_EXAMPLES)],
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
) -> EvalRunObject:
    """Queue a run. A worker that serves asks the model and grades the answers."""
    with services.database.snapshot() as session:
        definition = definitions.get(session, eval_id)
        content = definition.content
    schema = content["data_source_config"]["schema"]["properties"]["item"]
    rows = read_rows(services, body.data_source.source, schema)
    graders = [grader_adapter.validate_python(one) for one in content["testing_criteria"]]
    with services.database.transaction() as session:
        definitions.get(session, eval_id)
        row = _submit(session, services, body, rows, graders, eval_id, caller)
        return EvalRunObject.from_row(row, [], dashboard=_dashboard(request))


@router.get("", summary="List runs")
def list_runs(
    eval_id: EvalId,
    request: Request,
    services: ServicesDep,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Annotated[RunStatus | None, Query(description="Only those that stand there.")] = None,
) -> OpenAIPage[EvalRunObject]:
    """Runs of an eval, the oldest first."""
    state = None if status is None else STATES[status]
    with services.database.snapshot() as session:
        definitions.get(session, eval_id)
        found, has_more = definitions.find_runs(
            session, eval_id, state=state, order=order, after=after, limit=limit
        )
        return OpenAIPage(data=[_show(session, row, request) for row in found], has_more=has_more)


@router.get("/{run_id}", summary="Show a run")
def show_run(eval_id: EvalId, run_id: RunId, request: Request, services: ServicesDep) -> EvalRunObject:
    """One run, with what is graded so far."""
    with services.database.snapshot() as session:
        return _show(session, definitions.get_run(session, eval_id, run_id), request)


@router.post("/{run_id}/cancel", summary="Cancel a run")
def cancel_run(eval_id: EvalId, run_id: RunId, request: Request, services: ServicesDep) -> EvalRunObject:
    """End a run. What is graded stays."""
    with services.database.transaction() as session:
        definitions.get_run(session, eval_id, run_id)
        return _show(session, records.cancel(session, run_id), request)


@router.delete("/{run_id}", summary="Delete a run")
def delete_run(eval_id: EvalId, run_id: RunId, services: ServicesDep) -> EvalRunDeleted:
    """Delete a run with its items. One that has not ended is cancelled."""
    with services.database.transaction() as session:
        definitions.delete_run(session, definitions.get_run(session, eval_id, run_id))
    return EvalRunDeleted(run_id=run_id)


@router.get("/{run_id}/output_items", summary="List output items")
def list_items(
    eval_id: EvalId,
    run_id: RunId,
    services: ServicesDep,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Annotated[
        Literal["pass", "fail"] | None, Query(description="Only those that passed, or failed.")
    ] = None,
) -> OpenAIPage[OutputItem]:
    """The rows of a run that are graded, each with its answer and grades."""
    last = None if after is None else _number(run_id, after)
    with services.database.snapshot() as session:
        run = definitions.get_run(session, eval_id, run_id)
        if order == "asc":
            found = row_pages.read_rows(session, run_id, after=last)
        else:
            found = iter(list(row_pages.read_rows(session, run_id))[::-1])
            found = (row for row in found if last is None or row.number < last)
        page = list(islice((row for row in found if _is_wanted(row, status)), limit + 1))
        items = [OutputItem.from_row(run, row) for row in page[:limit]]
    return OpenAIPage(data=items, has_more=len(page) > limit)


@router.get("/{run_id}/output_items/{output_item_id}", summary="Show an output item")
def show_item(
    eval_id: EvalId,
    run_id: RunId,
    output_item_id: Annotated[str, Path(description="The item's id.", examples=["ev_4kq1v9x2m7ahc3zt_0"])],
    services: ServicesDep,
) -> OutputItem:
    """One row of a run that is graded."""
    number = _number(run_id, output_item_id)
    with services.database.snapshot() as session:
        run = definitions.get_run(session, eval_id, run_id)
        row = next(row_pages.read_rows(session, run_id, after=number - 1, chunk=1), None)
        if row is None or row.number != number or not _is_wanted(row, None):
            raise EvalNotFound(f"The run {run_id!r} has no graded item {output_item_id!r}.")
        return OutputItem.from_row(run, row)


def _submit(
    session: Session,
    services: Services,
    body: RunBody,
    rows: Sequence[SourceRow],
    graders: list[AnyGrader],
    eval_id: str,
    caller: Caller,
) -> tables.EvaluationRow:
    source = body.data_source
    origin: dict[str, Any] = {
        "data_source": source.model_dump(mode="json", exclude_unset=True),
        "metadata": body.metadata or {},
    }
    if isinstance(source, JsonlDataSource):
        pairs = [(row.item, row.sample) for row in rows]
        return given_answers.submit(
            session,
            services.settings,
            pairs,
            graders,
            name=body.name,
            definition_id=eval_id,
            origin=origin,
            caller=caller,
        )
    items = [row.item for row in rows]
    if tools := _tools(source):
        origin["added_to_items"] = ["tools"]
        items = [{**item, "tools": tools} for item in items]
    sampling = source.sampling_params or RunSampling()
    wanted = EvaluationRequest(
        name=body.name,
        rows=items,
        input=_input(source),
        models=[source.model],
        graders=graders,
        sampling=sampling.as_sampling(),
    )
    return submission.submit(
        session,
        services.settings,
        wanted,
        definition_id=eval_id,
        origin=origin | {"model": source.model},
        caller=caller,
    )


def _input(source: ModelDataSource) -> Any:
    messages = source.input_messages
    if messages is None:
        return None
    return messages.item_reference if isinstance(messages, InputReference) else messages.template


def _tools(source: ModelDataSource) -> list[dict[str, Any]]:
    tools = source.sampling_params.tools if source.sampling_params else None
    return [{"type": "function", "function": one.function.model_dump(mode="json")} for one in tools or []]


def _show(session: Session, row: tables.EvaluationRow, request: Request) -> EvalRunObject:
    graded = results.read_graded(session, row.id)
    return EvalRunObject.from_row(row, graded, dashboard=_dashboard(request))


def _dashboard(request: Request) -> str:
    return str(request.base_url)


def _is_wanted(row: SideBySide, status: str | None) -> bool:
    if 0 not in row.graded.grades:
        return False
    return status is None or outcome(row.graded.answers[0], row.graded.grades[0]) == status


def _number(run_id: str, output_item_id: str) -> int:
    """The row's number in the id of an output item. Raises InvalidRequest."""
    number = output_item_id.removeprefix(f"{run_id}_")
    if number.isdecimal() and len(number) < 8 and item_id(run_id, int(number)) == output_item_id:
        return int(number)
    raise InvalidRequest(f"{output_item_id!r} is no output item of the run {run_id!r}.", param="after")
