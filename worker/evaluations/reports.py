"""The messages between the worker and an evaluating child: JSON lines over two pipes."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, SecretStr, TypeAdapter

from app.core.engine.preflight import PreflightRequest
from app.core.evaluations.items import EvaluationItem
from app.core.evaluations.queue import RecordedAnswer
from app.core.evaluations.spec import EvaluationSpec
from app.core.settings import Settings
from app.core.specs.states import EvaluationPhase
from worker.processes.reports import FailureReport, ProcessMessage


class EvaluationRun(ProcessMessage):
    """The worker's request to an evaluating child.

    `rows` is the file of the dataset whose rows are to be chosen, `held_out` the job whose split says which;
    None: all may be, or they are stored already.
    """

    evaluation_id: str
    spec: EvaluationSpec
    rows: Path | None = None
    held_out: PreflightRequest | None = None
    setting_values: dict[str, Any] = Field(description="Settings that are not the defaults.")

    @classmethod
    def of(cls, settings: Settings, **fields: Any) -> Self:
        """The request with the worker's settings; the pipe is the child's alone, so secrets may pass."""
        changed = {name: getattr(settings, name) for name in settings.model_dump(exclude_defaults=True)}
        values = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in changed.items()
        }
        return cls(setting_values=values, **fields)

    @property
    def settings(self) -> Settings:
        """The worker's settings."""
        return Settings(**self.setting_values)


class RowsFound(ProcessMessage):
    """Rows that were chosen, from the number `first` on."""

    type: Literal["rows"] = "rows"
    first: int
    items: list[EvaluationItem]


class RowsComplete(ProcessMessage):
    """All rows are chosen; `left_out` of the dataset's can't be asked."""

    type: Literal["rows_complete"] = "rows_complete"
    rows: int
    left_out: int


class ModelUse(BaseModel):
    """What was used of one model, the evaluated ones and those that grade."""

    model: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Evaluating(ProcessMessage):
    """Answers and grades, what the child does or waits for now, and what was used since the last report."""

    type: Literal["evaluating"] = "evaluating"
    answers: list[RecordedAnswer] = Field([])
    used: list[ModelUse] = Field([])
    phase: EvaluationPhase | None = None
    waiting_for: str | None = None


class Evaluated(ProcessMessage):
    """Every answer is graded. The child's last report."""

    type: Literal["evaluated"] = "evaluated"
    results: dict[str, Any]


class EvaluationBroken(FailureReport):
    """The evaluation failed; its answers stay. The child's last report."""


EvaluationReport = Annotated[
    RowsFound | RowsComplete | Evaluating | Evaluated | EvaluationBroken, Field(discriminator="type")
]
evaluation_report_adapter: TypeAdapter[EvaluationReport] = TypeAdapter(EvaluationReport)
