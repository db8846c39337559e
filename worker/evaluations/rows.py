"""The rows of an evaluation: those that are stored, or a choice of a dataset's."""

from collections.abc import Callable

from pydantic import BaseModel
from sqlalchemy import select

from app.core.datasets.rows import read_rows
from app.core.engine.messages import BaseModelRef
from app.core.engine.preflight import HeldOut
from app.core.errors.evaluations import EvaluationDatasetUnfit
from app.core.evaluations.engine_requests import EngineRequests, RequestRefused
from app.core.evaluations.items import EvaluationItem, EvaluationPrompt, ItemUnfit, draw, read_items
from app.core.storage import tables
from app.core.storage.database import Database
from worker.evaluations.reports import EvaluationRun, RowsComplete, RowsFound

_ROWS_PER_REPORT = 100

Send = Callable[[BaseModel], None]


def read_stored(database: Database, evaluation_id: str) -> list[EvaluationItem] | None:
    """Returns the stored rows, or None where they are not all stored yet."""
    row = tables.EvaluationItemRow
    with database.snapshot() as session:
        evaluation = session.get(tables.EvaluationRow, evaluation_id)
        if evaluation is None or evaluation.rows is None:
            return None
        stored = session.execute(
            select(row.item, row.prompt, row.line)
            .where(row.evaluation_id == evaluation_id)
            .order_by(row.number)
        )
        return [
            EvaluationItem(item, EvaluationPrompt.model_validate(prompt), line)
            for item, prompt, line in stored
        ]


async def choose_rows(request: EvaluationRun, requests: EngineRequests, send: Send) -> list[EvaluationItem]:
    """Choose the rows of the dataset and report them. Raises EvaluationDatasetUnfit, EvaluationFailure.

    Where rows that were drawn can't be asked, they are left out, and no others are drawn for them: the
    choice is that of the seed alone.
    """
    assert request.rows is not None
    spec = request.spec
    lines = await _find_lines(request, requests)
    drawn = set(draw(lines, spec.limit, spec.seed))
    try:
        with request.rows.open("rb") as file:
            read = list(read_items(read_rows(file), drawn, spec))
    except ItemUnfit as error:
        raise EvaluationDatasetUnfit(
            f"{error}.", hint="`input` must fit every row of the dataset."
        ) from error
    items = [item for item in read if item is not None]
    if not items:
        raise EvaluationDatasetUnfit(
            f"None of the {len(read)} rows has a prompt and an answer to it.",
            hint="Texts without a prompt can only be graded by `perplexity`, with `generate` false.",
        )
    for first in range(0, len(items), _ROWS_PER_REPORT):
        send(RowsFound(first=first, items=items[first : first + _ROWS_PER_REPORT]))
    send(RowsComplete(rows=len(items), left_out=len(read) - len(items)))
    return items


async def _find_lines(request: EvaluationRun, requests: EngineRequests) -> list[int]:
    """Returns the lines of the dataset that may be chosen, in their order."""
    assert request.rows is not None
    if request.held_out is None:
        with request.rows.open("rb") as file:
            return [line for line, _ in read_rows(file)]
    job = request.held_out.spec
    base_model = BaseModelRef(name=job.base_model, quantization=job.quantization)
    try:
        found = await requests.ask("/held_out", base_model, request.held_out, HeldOut)
    except RequestRefused as error:
        raise EvaluationDatasetUnfit(
            f"The held-out rows of the job can't be found: {error.message}"
        ) from None
    return found.lines
