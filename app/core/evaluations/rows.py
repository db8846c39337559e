"""Rows of an evaluation with the answers of all models side by side: pages, filters, a CSV table."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest
from app.core.evaluations import statistics
from app.core.evaluations.answers import Answer, StoredGrade
from app.core.evaluations.results import GradedRow
from app.core.evaluations.spec import EvaluationSpec
from app.core.storage import tables

_CHUNK_ROWS = 200


class RowOutcome(StrEnum):
    """Rows by what became of a model's answer."""

    PASSED = "passed"
    FAILED = "failed"
    WON = "won"
    TIED = "tied"
    LOST = "lost"
    ERROR = "error"


@dataclass(frozen=True)
class RowFilter:
    """Which rows are wanted. `model` and `grader` narrow `outcome`; None: any of them."""

    disagree: bool = False
    outcome: RowOutcome | None = None
    model: int | None = None
    grader: int | None = None
    search: str | None = None

    @property
    def selects_all(self) -> bool:
        """Whether every row is wanted."""
        return not (self.disagree or self.outcome or self.search)


@dataclass(frozen=True)
class SideBySide:
    """One row: its item, its prompt, and the answers and grades by model."""

    number: int
    line: int | None
    item: dict[str, Any]
    prompt: dict[str, Any]
    graded: GradedRow


def make_filter(
    spec: EvaluationSpec,
    *,
    disagree: bool = False,
    outcome: RowOutcome | None = None,
    model: str | None = None,
    grader: str | None = None,
    search: str | None = None,
) -> RowFilter:
    """Returns the filter of labels and names. Raises InvalidRequest for one that there is not."""
    labels = [one.label for one in spec.models]
    return RowFilter(
        disagree=disagree,
        outcome=outcome,
        model=_find(labels, model, "model"),
        grader=_find(spec.grader_names, grader, "grader"),
        search=search.casefold() if search else None,
    )


def read_page(
    session: Session, evaluation: tables.EvaluationRow, wanted: RowFilter, *, after: int | None, limit: int
) -> tuple[list[SideBySide], int | None]:
    """Returns a page of rows by number, and the number for `after` of the next page or None at the end."""
    spec = EvaluationSpec.model_validate(evaluation.spec)
    matching = (
        row
        for row in read_rows(session, evaluation.id, after=after, chunk=_chunk(wanted, limit))
        if wanted.selects_all or _matches(row, wanted, spec)
    )
    page = list(islice(matching, limit + 1))
    return page[:limit], page[limit - 1].number if len(page) > limit else None


def read_rows(
    session: Session, evaluation_id: str, *, after: int | None = None, chunk: int = _CHUNK_ROWS
) -> Iterator[SideBySide]:
    """Yield the rows after a number, with the answers that there are."""
    row = tables.EvaluationItemRow
    cursor = -1 if after is None else after
    while True:
        of_this = select(row.number, row.line, row.item, row.prompt).where(
            row.evaluation_id == evaluation_id, row.number > cursor
        )
        rows = session.execute(of_this.order_by(row.number).limit(chunk)).all()
        if not rows:
            return
        graded = _read_answers(session, evaluation_id, rows[0].number, rows[-1].number)
        for one in rows:
            found = graded.get(one.number) or GradedRow(one.number)
            yield SideBySide(one.number, one.line, one.item, one.prompt, found)
        cursor = rows[-1].number


def write_table(spec: EvaluationSpec, rows: Iterator[SideBySide]) -> Iterator[str]:
    """Yield the rows as lines of a CSV table: a row a line, columns for each model and grader."""
    names = spec.grader_names
    head = ["row", "line", "prompt", "reference"]
    for model in spec.models:
        head += [model.label, *(f"{model.label}: {name}" for name in names), f"{model.label}: error"]
    yield _line(head)
    for row in rows:
        reference = row.item.get("reference")
        cells: list[object] = [row.number, row.line, prompt_text(row.prompt), reference]
        for index in range(len(spec.models)):
            answer, grades = row.graded.answers.get(index), row.graded.grades.get(index)
            cells.append(answer_text(answer) if answer else None)
            cells += [grade.score for grade in grades] if grades else [None] * len(names)
            cells.append(answer.error.message if answer and answer.error else None)
        yield _line(cells)


def prompt_text(prompt: dict[str, Any]) -> str:
    """Returns a prompt as text: of one question alone the question, else each message after its role."""
    messages = prompt.get("messages")
    if not messages:
        return str(prompt.get("text") or "")
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{one['role']}: {one['content']}" for one in messages)


def answer_text(answer: Answer) -> str:
    """Returns an answer as text, its calls as `name(arguments)`."""
    calls = [f"{call.name}({call.arguments})" for call in answer.tool_calls]
    return "\n".join(part for part in (answer.text, *calls) if part)


def _chunk(wanted: RowFilter, limit: int) -> int:
    return limit + 1 if wanted.selects_all else _CHUNK_ROWS


def _read_answers(session: Session, evaluation_id: str, first: int, last: int) -> dict[int, GradedRow]:
    row = tables.EvaluationAnswerRow
    query = select(row.number, row.model, row.answer, row.grades).where(
        row.evaluation_id == evaluation_id, row.number.between(first, last)
    )
    found: dict[int, GradedRow] = {}
    for number, model, answer, grades in session.execute(query):
        graded = found.setdefault(number, GradedRow(number))
        graded.answers[model] = Answer.model_validate(answer)
        if grades is not None:
            graded.grades[model] = [StoredGrade.model_validate(grade) for grade in grades]
    return found


def _matches(row: SideBySide, wanted: RowFilter, spec: EvaluationSpec) -> bool:
    if wanted.disagree and not row.graded.models_disagree:
        return False
    if wanted.search and not _contains(row, wanted.search):
        return False
    if wanted.outcome is None:
        return True
    models = range(len(spec.models)) if wanted.model is None else [wanted.model]
    return any(_has_outcome(row.graded, model, wanted, spec) for model in models)


def _contains(row: SideBySide, search: str) -> bool:
    texts = [prompt_text(row.prompt), str(row.item.get("reference") or "")]
    texts += [answer_text(answer) for answer in row.graded.answers.values()]
    return any(search in text.casefold() for text in texts)


def _has_outcome(row: GradedRow, model: int, wanted: RowFilter, spec: EvaluationSpec) -> bool:
    answer = row.answers.get(model)
    if wanted.outcome is RowOutcome.ERROR and answer is not None and answer.error is not None:
        return True
    graders = range(len(spec.graders)) if wanted.grader is None else [wanted.grader]
    return any(_outcome_of(row, model, grader, spec) is wanted.outcome for grader in graders) or any(
        _passing_of(row, model, grader) is wanted.outcome for grader in graders
    )


def _passing_of(row: GradedRow, model: int, grader: int) -> RowOutcome | None:
    grades = row.grades.get(model)
    if not grades:
        return None
    grade = grades[grader]
    if grade.score is None:
        return RowOutcome.ERROR
    return None if grade.passed is None else RowOutcome.PASSED if grade.passed else RowOutcome.FAILED


def _outcome_of(row: GradedRow, model: int, grader: int, spec: EvaluationSpec) -> RowOutcome | None:
    """How a model's score compares with the baseline's; None where there is nothing to compare."""
    mine, theirs = row.score(model, grader), row.score(spec.baseline, grader)
    if model == spec.baseline or mine is None or theirs is None:
        return None
    difference = mine - theirs
    if spec.graders[grader].is_better_when_lower:
        difference = -difference
    if abs(difference) <= statistics.TIE:
        return RowOutcome.TIED
    return RowOutcome.WON if difference > 0 else RowOutcome.LOST


def _find(names: Sequence[str], wanted: str | None, param: str) -> int | None:
    if wanted is None:
        return None
    if wanted in names:
        return list(names).index(wanted)
    raise InvalidRequest(
        f"There is no {param} {wanted!r} in this evaluation.",
        param=param,
        hint=f"It has: {', '.join(names) or 'none'}.",
    )


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()
