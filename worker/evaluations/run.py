"""The evaluating child process, `python -m worker.evaluations.run <report_fd>`: asks, grades, summarizes.

It reads the database, for the rows and answers of earlier attempts and for the addresses of engines, and
writes nothing: the worker, which owns the lease, stores what is reported.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from app.core.adapters import records as adapter_records
from app.core.engine.messages import BaseModelRef
from app.core.engine.sampling import Sampling
from app.core.errors import TunesmithError
from app.core.errors.adapters import AdapterNotFound
from app.core.errors.evaluations import EvaluationFailure
from app.core.evaluations.answers import Answer, AnswerCall, AnswerError, StoredGrade
from app.core.evaluations.engine_requests import EngineRequests, RequestRefused
from app.core.evaluations.items import EvaluationItem
from app.core.evaluations.local_judge import ServedModel
from app.core.evaluations.queue import RecordedAnswer
from app.core.evaluations.results import GradedRow, summarize
from app.core.specs.states import EvaluationPhase
from app.core.storage import tables
from app.core.storage.database import Database
from worker.evaluations.grading import Grading, make_request
from worker.evaluations.reports import Evaluated, Evaluating, EvaluationBroken, EvaluationRun
from worker.evaluations.rows import choose_rows, read_stored
from worker.evaluations.use import UnreportedUse
from worker.processes.child import ParentLink
from worker.processes.logs import set_up_logging

_log = logging.getLogger(__name__)


def main(report_fd: int) -> None:
    """Run the evaluation that the worker requests and report its result."""
    set_up_logging()
    link = ParentLink(report_fd)
    request = link.read_request(EvaluationRun)
    # What is reported is stored, and the rest is asked again: a stop ends the process at once.
    link.watch(on_stop=lambda: os._exit(0))
    try:
        asyncio.run(_evaluate(request, link))
    except Exception as error:  # the boundary of the evaluation: any error becomes its report
        found = _first_error(error)
        _log.exception("Evaluation %s failed", request.evaluation_id)
        if not isinstance(found, TunesmithError):
            found = EvaluationFailure(
                f"The evaluation failed: {found}", hint="See the worker's evaluations.log."
            )
        link.send(EvaluationBroken(code=found.code, message=found.message, hint=found.hint))


async def _evaluate(request: EvaluationRun, link: ParentLink) -> None:
    settings = request.settings
    database = Database(settings.database_url)
    waiting = _WaitingReports(link)
    requests = EngineRequests(settings, database, waiting.report)
    use = UnreportedUse()
    grading = Grading(request.spec, settings, database, requests, use)
    try:
        items = read_stored(database, request.evaluation_id)
        if items is None:
            items = await choose_rows(request, requests, link.send)
        link.send(Evaluating(phase=EvaluationPhase.GENERATING))
        evaluation = _Evaluation(request, items, link, requests, grading, waiting, use)
        evaluation.load(database)
        await evaluation.run(settings.evaluation_requests)
        link.send(Evaluating(phase=EvaluationPhase.SUMMARIZING))
        link.send(Evaluated(results=evaluation.summarize()))
    except Exception:
        link.send(Evaluating(used=use.take()))
        raise
    finally:
        await grading.close()
        await requests.close()
        database.close()


class _WaitingReports:
    """Reports what the requests wait for, when that changes."""

    def __init__(self, link: ParentLink) -> None:
        self._link = link
        self.reason: str | None = None

    def report(self, reason: str | None) -> None:
        if reason != self.reason:
            self.reason = reason
            self._link.send(Evaluating(waiting_for=reason))


@dataclass(frozen=True)
class _Cell:
    """One model's answer to one row; `answer` where it is stored already and has no grades."""

    number: int
    model: int
    answer: Answer | None


class _Evaluation:
    """The answers of one evaluation: those of earlier attempts, and those still to be asked."""

    def __init__(
        self,
        request: EvaluationRun,
        items: list[EvaluationItem],
        link: ParentLink,
        requests: EngineRequests,
        grading: Grading,
        waiting: _WaitingReports,
        use: UnreportedUse,
    ) -> None:
        self._id = request.evaluation_id
        self._spec = request.spec
        self._items = items
        self._link = link
        self._requests = requests
        self._grading = grading
        self._waiting = waiting
        self._use = use
        self._models: list[ServedModel] = []
        self._rows: dict[int, GradedRow] = {}
        self._ungraded: dict[tuple[int, int], Answer] = {}

    def load(self, database: Database) -> None:
        """Find the models, and the answers of earlier attempts. Raises EvaluationFailure."""
        row = tables.EvaluationAnswerRow
        with database.snapshot() as session:
            for model in self._spec.models:
                base_model = BaseModelRef(name=model.base_model, quantization=model.quantization)
                if model.adapter is None:
                    self._models.append(ServedModel(base_model.name, base_model))
                    continue
                try:
                    adapter = adapter_records.get(session, model.adapter)
                except AdapterNotFound as error:
                    raise EvaluationFailure(f"The adapter of {model.label!r} was deleted.") from error
                self._models.append(ServedModel(adapter.name, *adapter_records.references(adapter)))
            stored = select(row.number, row.model, row.answer, row.grades)
            for number, index, answer, grades in session.execute(stored.where(row.evaluation_id == self._id)):
                found = Answer.model_validate(answer)
                if grades is None:
                    self._ungraded[number, index] = found
                else:
                    self._add(number, index, found, [StoredGrade.model_validate(one) for one in grades])

    async def run(self, concurrency: int) -> None:
        """Ask and grade what is missing, so many requests at a time. Raises EvaluationFailure."""
        cells = self._missing()

        async def work() -> None:
            for cell in cells:
                await self._ask_and_grade(cell)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
        self._refuse_without_answers()

    def summarize(self) -> dict[str, object]:
        """Returns the results, as they are stored."""
        rows = [self._rows[number] for number in sorted(self._rows)]
        return summarize(self._spec, rows).model_dump(mode="json")

    def _missing(self) -> Iterator[_Cell]:
        """The answers that are missing: base model by base model, row by row, so that few are loaded."""
        groups: dict[str, list[int]] = {}
        for index, model in enumerate(self._models):
            groups.setdefault(model.base_model.key, []).append(index)
        for indexes in groups.values():
            for number in range(len(self._items)):
                for index in indexes:
                    if number not in self._rows or index not in self._rows[number].grades:
                        yield _Cell(number, index, self._ungraded.get((number, index)))

    async def _ask_and_grade(self, cell: _Cell) -> None:
        item, model = self._items[cell.number], self._models[cell.model]
        answer = cell.answer
        if answer is None:
            answer = await self._ask(item, model) if self._spec.generate else Answer()
            if self._spec.graders and self._spec.generate:
                self._report(RecordedAnswer(cell.number, cell.model, answer))
        grades = await self._grading.grade_all(item, answer, model)
        self._add(cell.number, cell.model, answer, grades)
        self._report(RecordedAnswer(cell.number, cell.model, answer, grades))

    async def _ask(self, item: EvaluationItem, model: ServedModel) -> Answer:
        sampling = Sampling.model_validate(self._spec.sampling.model_dump())
        request = make_request(item, model, sampling)
        try:
            found = await self._requests.generate(request)
        except RequestRefused as error:
            return Answer(error=AnswerError(code=error.code, message=error.message))
        finished = found.finished
        self._use.add(model.name, finished.usage.prompt_tokens, finished.usage.completion_tokens)
        return Answer(
            text=found.text,
            reasoning=found.reasoning,
            tool_calls=[
                AnswerCall(id=call.id, name=call.name, arguments=call.arguments) for call in found.tool_calls
            ],
            finish_reason=finished.finish_reason,
            prompt_tokens=finished.usage.prompt_tokens,
            completion_tokens=finished.usage.completion_tokens,
            seconds=finished.timings.total_seconds,
        )

    def _add(self, number: int, model: int, answer: Answer, grades: list[StoredGrade]) -> None:
        row = self._rows.setdefault(number, GradedRow(number))
        row.answers[model], row.grades[model] = answer, grades

    def _report(self, one: RecordedAnswer) -> None:
        self._link.send(Evaluating(answers=[one], used=self._use.take(), waiting_for=self._waiting.reason))

    def _refuse_without_answers(self) -> None:
        """Raise EvaluationFailure where every answer has an error: there is nothing to compare."""
        answers = [answer for row in self._rows.values() for answer in row.answers.values()]
        errors = [answer.error for answer in answers if answer.error is not None]
        if errors and len(errors) == len(answers):
            raise EvaluationFailure(
                f"No row was answered. The first error: {errors[0].message}",
                hint="GET /evaluations/{id}/rows shows the error of each row.",
            )


def _first_error(error: BaseException) -> BaseException:
    """The error that ended a group of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main(int(sys.argv[1]))
