"""The fields of evaluations that commands show. Fields that another version adds are ignored."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.cli.views import FailureView


class EstimateView(BaseModel):
    """A value with the bounds of its 95% confidence interval."""

    value: float
    low: float
    high: float


class ComparisonView(BaseModel):
    """How a model's scores compare with the baseline's."""

    wins: int
    ties: int
    losses: int


class GraderResultView(BaseModel):
    """What one grader gave one model's answers."""

    grader: str
    graded: int
    errors: int
    mean: EstimateView | None = None
    passed: int | None = None
    pass_rate: EstimateView | None = None
    against_baseline: ComparisonView | None = None


class ModelResultView(BaseModel):
    """What one model's answers scored."""

    model: str
    answers: int
    errors: int
    cut: int
    graders: list[GraderResultView]


class ResultsView(BaseModel):
    """The results of an evaluation."""

    rows: int
    baseline: str
    disagreements: int
    models: list[ModelResultView]


class EvaluationView(BaseModel):
    """An evaluation."""

    id: str
    name: str
    state: str
    phase: str | None = None
    queue_position: int | None = None
    waiting_for: str | None = None
    spec: dict[str, Any]
    rows: int | None = None
    left_out: int = 0
    total: int | None = None
    done: int = 0
    failed: int = 0
    error: FailureView | None = None
    results: ResultsView | None = None
    created_at: datetime

    @property
    def labels(self) -> list[str]:
        """The labels of its models."""
        return [str(model["label"]) for model in self.spec["models"]]

    @property
    def progress(self) -> str:
        """How many of the answers are graded, in percent; empty while its rows are not chosen."""
        return f"{self.done / self.total:.0%}" if self.total else ""


class AnswerErrorView(BaseModel):
    """Why there is no answer, or no score."""

    code: str
    message: str


class GradeView(BaseModel):
    """What one grader gave one answer."""

    score: float | None = None
    passed: bool | None = None
    reason: str | None = None
    error: AnswerErrorView | None = None


class AnswerCallView(BaseModel):
    """A function call of an answer."""

    name: str
    arguments: str


class EvaluationAnswerView(BaseModel):
    """What one model generated for a row, and its grades."""

    model: str
    text: str
    tool_calls: list[AnswerCallView] = []
    error: AnswerErrorView | None = None
    grades: dict[str, GradeView] | None = None


class SideBySideView(BaseModel):
    """One row, with the answers of all models."""

    number: int
    line: int | None = None
    prompt: str
    reference: str | None = None
    models_disagree: bool
    answers: list[EvaluationAnswerView]
