"""The fields of datasets that commands show. Fields that another version adds are ignored."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.cli.failures import LineProblem
from app.cli.views import FailureView, NoticeView


class UnusedFieldView(BaseModel):
    """A field of a dataset from which nothing is learned."""

    field: str
    rows: int
    changes_learning: bool


class DatasetView(BaseModel):
    """A dataset."""

    id: str
    name: str
    state: str
    format: str | None = None
    rows: int
    columns: list[str]
    problems: list[LineProblem] = []
    problem_count: int = 0
    unused_fields: list[UnusedFieldView] = []
    hub: dict[str, Any] | None = None
    error: FailureView | None = None
    created_at: datetime


class TokenView(BaseModel):
    """A token of a preview."""

    text: str
    trained: bool


class PreviewAnswerView(BaseModel):
    """An answer of a row of preferences, in a preview."""

    name: str
    is_good: bool
    tokens: list[TokenView]
    token_count: int


class PreviewRowView(BaseModel):
    """A row of a preview; of a row of preferences, `tokens` are its prompt."""

    line: int
    tokens: list[TokenView]
    token_count: int = 0
    answers: list[PreviewAnswerView] = []
    truncated: bool
    problem: str | None = None
    notices: list[str] = []


class PreviewView(BaseModel):
    """Rows of a dataset, rendered and tokenized."""

    data: list[PreviewRowView]
    next: int | None = None
    warnings: list[NoticeView] = []
