"""The results of an evaluation: what each model's answers scored, and how they compare with the baseline."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.evaluations import statistics
from app.core.evaluations.answers import Answer, StoredGrade
from app.core.evaluations.spec import EvaluationSpec
from app.core.graders.shapes import AnyGrader
from app.core.storage import tables

_CHUNK_ROWS = 500


class _Read(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)


class EstimateRead(_Read):
    """A value with the bounds of its 95% confidence interval."""

    value: float = Field(description="The value of these rows.")
    low: float = Field(description="Lower bound of the interval.")
    high: float = Field(description="Upper bound of the interval.")


class BaselineComparisonRead(_Read):
    """How a model's scores compare with the baseline's on the same rows."""

    wins: int = Field(description="Rows on which this model's score is better.")
    ties: int = Field(description="Rows on which both scores are the same.")
    losses: int = Field(description="Rows on which the baseline's score is better.")
    difference: EstimateRead = Field(description="Mean of this model's score minus the baseline's.")


class GraderResultRead(_Read):
    """What one grader gave one model's answers."""

    grader: str = Field(description="The grader's name.")
    graded: int = Field(description="Answers with a score.")
    errors: int = Field(description="Answers that could not be graded.")
    mean: EstimateRead | None = Field(
        description="Mean score; of `perplexity` the geometric one. Interval: bootstrap. Null: no score."
    )
    passed: int | None = Field(description="Answers that passed; null: the grader has no threshold.")
    pass_rate: EstimateRead | None = Field(description="Share that passed. Interval: Wilson's.")
    against_baseline: BaselineComparisonRead | None = Field(
        description="Compared with the baseline, row by row; null: this is the baseline."
    )


class ModelResultRead(_Read):
    """What one model's answers scored."""

    model: str = Field(description="The model's label.")
    answers: int = Field(description="Answers that there are, errors left out.")
    errors: int = Field(description="Rows without an answer, because of an error.")
    cut: int = Field(description="Answers that ended at `max_new_tokens`.")
    prompt_tokens: int = Field(description="Tokens read.")
    completion_tokens: int = Field(description="Tokens made.")
    mean_seconds: float | None = Field(description="Mean time of an answer, waiting included.")
    graders: list[GraderResultRead] = Field(description="One for each grader, in their order.")


class EvaluationResults(_Read):
    """The results of an evaluation, or of what is graded so far."""

    rows: int = Field(description="Rows with at least one graded answer.")
    baseline: str = Field(description="Label of the model that the others are compared with.")
    disagreements: int = Field(
        description="Rows on which the models' grades (without graders: texts) differ."
    )
    models: list[ModelResultRead] = Field(description="One for each model, in their order.")


@dataclass
class GradedRow:
    """The answers and grades of one row, by model."""

    number: int
    answers: dict[int, Answer] = field(default_factory=dict)
    grades: dict[int, list[StoredGrade]] = field(default_factory=dict)

    def score(self, model: int, grader: int) -> float | None:
        """The score of a model's answer, or None."""
        grades = self.grades.get(model)
        return grades[grader].score if grades else None

    @property
    def models_disagree(self) -> bool:
        """Whether the scores of any grader differ among the models; without graders, whether texts do."""
        lists = list(self.grades.values())
        if lists and lists[0]:
            columns = zip(*([grade.score for grade in grades] for grades in lists), strict=True)
            return any(
                statistics.differ([score for score in column if score is not None]) for column in columns
            )
        return len({answer.text for answer in self.answers.values()}) > 1


def read_graded(session: Session, evaluation_id: str) -> Iterator[GradedRow]:
    """Yield the rows that have answers, by number, with the answers that are graded."""
    row = tables.EvaluationAnswerRow
    query = select(row.number, row.model, row.answer, row.grades).where(row.evaluation_id == evaluation_id)
    query = query.order_by(row.number, row.model).execution_options(yield_per=_CHUNK_ROWS)
    current: GradedRow | None = None
    for number, model, answer, grades in session.execute(query):
        if grades is None:
            continue
        if current is None or current.number != number:
            if current is not None:
                yield current
            current = GradedRow(number)
        current.answers[model] = Answer.model_validate(answer)
        current.grades[model] = [StoredGrade.model_validate(grade) for grade in grades]
    if current is not None:
        yield current


def summarize(spec: EvaluationSpec, rows: Iterable[GradedRow]) -> EvaluationResults:
    """Returns the results of graded rows."""
    graded = list(rows)
    return EvaluationResults(
        rows=len(graded),
        baseline=spec.models[spec.baseline].label,
        disagreements=sum(row.models_disagree for row in graded),
        models=[_summarize_model(spec, index, graded) for index in range(len(spec.models))],
    )


def _summarize_model(spec: EvaluationSpec, model: int, rows: list[GradedRow]) -> ModelResultRead:
    answers = [row.answers[model] for row in rows if model in row.answers]
    given = [answer for answer in answers if answer.error is None]
    seconds = [answer.seconds for answer in given if answer.seconds is not None]
    return ModelResultRead(
        model=spec.models[model].label,
        answers=len(given),
        errors=len(answers) - len(given),
        cut=sum(answer.finish_reason == "length" for answer in given),
        prompt_tokens=sum(answer.prompt_tokens for answer in given),
        completion_tokens=sum(answer.completion_tokens for answer in given),
        mean_seconds=sum(seconds) / len(seconds) if seconds else None,
        graders=[
            _summarize_grader(spec, model, index, name, rows) for index, name in enumerate(spec.grader_names)
        ],
    )


def _summarize_grader(
    spec: EvaluationSpec, model: int, index: int, name: str, rows: list[GradedRow]
) -> GraderResultRead:
    grader: AnyGrader = spec.graders[index]
    grades = [row.grades[model][index] for row in rows if model in row.grades]
    scores = [grade.score for grade in grades if grade.score is not None]
    passes = [grade.passed for grade in grades if grade.passed is not None]
    estimate = statistics.estimate_geometric_mean if _is_ratio(grader) else statistics.estimate_mean
    comparison = None
    if model != spec.baseline:
        pairs = [(row.score(model, index), row.score(spec.baseline, index)) for row in rows]
        both = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
        comparison = statistics.compare(both, is_better_when_lower=grader.is_better_when_lower)
    return GraderResultRead(
        grader=name,
        graded=len(scores),
        errors=len(grades) - len(scores),
        mean=EstimateRead.model_validate(estimate(scores)) if scores else None,
        passed=sum(passes) if passes else None,
        pass_rate=EstimateRead.model_validate(statistics.estimate_rate(sum(passes), len(passes)))
        if passes
        else None,
        against_baseline=BaselineComparisonRead.model_validate(comparison) if comparison else None,
    )


def _is_ratio(grader: AnyGrader) -> bool:
    return grader.type == "perplexity"
