"""What the routes of evaluations return. Knows no database session."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.core.evaluations.answers import Answer, StoredGrade
from app.core.evaluations.results import EvaluationResults
from app.core.evaluations.rows import SideBySide, prompt_text
from app.core.evaluations.spec import EvaluationSpec
from app.core.specs.states import EvaluationPhase, EvaluationState
from app.core.storage import tables

_TOMORROW = "the next day (UTC): its key has spent its tokens of today"


class EvaluationErrorRead(BaseModel):
    """Why an evaluation failed."""

    code: str = Field(description="A stable word for programs.", examples=["dataset_unfit"])
    message: str = Field(description="What happened, for a person.")
    hint: str | None = Field(description="What to do next.")


class EvaluationProgressRead(BaseModel):
    """How far an evaluation is; the data of the events of its stream."""

    id: str = Field(description="Names the evaluation in every path.", examples=["ev_4kq1v9x2m7ahc3zt"])
    state: EvaluationState = Field(description="Where the evaluation stands.")
    phase: EvaluationPhase | None = Field(description="What a running evaluation is doing.")
    waiting_for: str | None = Field(
        description="Why it does not go on: a running one for a job that trains on the GPU, for example; a "
        "waiting one once the tokens of its key are spent for today."
    )
    total: int | None = Field(description="Answers that there will be; null: its rows are not chosen yet.")
    done: int = Field(description="Answers that are graded.")
    failed: int = Field(description="Those of them that are errors.")

    @classmethod
    def from_row(cls, row: tables.EvaluationRow) -> "EvaluationProgressRead":
        """The progress as the API shows it."""
        return cls.model_validate(row, from_attributes=True)


class EvaluationRead(EvaluationProgressRead):
    """Models that are asked the same rows, and compared."""

    queue_position: int | None = Field(
        None, description="Its place among the waiting evaluations, from 1; null: it does not wait."
    )
    name: str = Field(description="A name for people.")
    spec: EvaluationSpec = Field(description="What is evaluated, and how.")
    dataset: str | None = Field(
        description="Id of the dataset of its rows; null: they came with the request."
    )
    grader_names: list[str] = Field(description="The graders' names in results and filters.")
    rows: int | None = Field(description="Rows that the models are asked; null: not chosen yet.")
    left_out: int = Field(
        description="Rows that were drawn but have no prompt, or no answer to compare with."
    )
    attempts: int = Field(description="How often a worker has begun with it.")
    error: EvaluationErrorRead | None = Field(description="Why it failed.")
    created_at: datetime = Field(description="When it was asked for.")
    started_at: datetime | None = Field(description="When the first attempt began.")
    finished_at: datetime | None = Field(description="When it ended.")
    results: EvaluationResults | None = Field(
        description="The results, once it has succeeded; `/evaluations/{id}/results` has those so far."
    )

    @classmethod
    def from_row(
        cls, row: tables.EvaluationRow, queue_position: int | None = None, *, is_held: bool = False
    ) -> "EvaluationRead":
        """The evaluation as the API shows it. `is_held`: its key has spent its tokens of today."""
        spec = EvaluationSpec.model_validate(row.spec)
        progress = EvaluationProgressRead.from_row(row).model_dump()
        if is_held:
            progress["waiting_for"] = _TOMORROW
        return cls(
            **progress,
            queue_position=queue_position,
            name=row.name,
            spec=spec,
            dataset=row.dataset_id,
            grader_names=spec.grader_names,
            rows=row.rows,
            left_out=row.left_out,
            attempts=row.attempts,
            error=EvaluationErrorRead.model_validate(row.error) if row.error else None,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            results=EvaluationResults.model_validate(row.results) if row.results else None,
        )


class EvaluationAnswerRead(Answer):
    """What one model generated for a row, and its grades."""

    model: str = Field(description="The model's label.")
    grades: dict[str, StoredGrade] | None = Field(
        description="By the graders' names; null: it is not graded yet."
    )


class EvaluatedRowRead(BaseModel):
    """One row, with the answers of all models side by side."""

    number: int = Field(description="Counts the rows from 0.")
    line: int | None = Field(description="Line of the row in the dataset; null: an inline row.")
    item: dict[str, Any] = Field(description="What templates call `item`.")
    prompt: str = Field(description="What the models are asked, as text.")
    reference: str | None = Field(description="The row's own answer, where it has one.")
    models_disagree: bool = Field(description="Whether the models' scores (without graders: texts) differ.")
    answers: list[EvaluationAnswerRead] = Field(description="Those that there are, in the order of models.")

    @classmethod
    def from_row(cls, row: SideBySide, spec: EvaluationSpec) -> "EvaluatedRowRead":
        """The row as the API shows it."""
        reference = row.item.get("reference")
        return cls(
            number=row.number,
            line=row.line,
            item=row.item,
            prompt=prompt_text(row.prompt),
            reference=reference if isinstance(reference, str) else None,
            models_disagree=row.graded.models_disagree,
            answers=[
                EvaluationAnswerRead(
                    **answer.model_dump(),
                    model=spec.models[index].label,
                    grades=_named(spec, row.graded.grades.get(index)),
                )
                for index, answer in sorted(row.graded.answers.items())
            ],
        )


class EvaluatedRowPage(BaseModel):
    """A page of rows."""

    data: list[EvaluatedRowRead] = Field(description="The rows of this page.")
    next: int | None = Field(description="For `after`; null at the end.")


def _named(spec: EvaluationSpec, grades: list[StoredGrade] | None) -> dict[str, StoredGrade] | None:
    return None if grades is None else dict(zip(spec.grader_names, grades, strict=True))
