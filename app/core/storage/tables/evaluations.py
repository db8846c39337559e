"""Rows of evaluations: their definitions, their prompts, and what each model generated for them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import CountedRow, QueuedRow, Table


class EvaluationDefinitionRow(Table):
    """What several evaluations have in common: an eval of /v1/evals, of which each evaluation is a run."""

    __tablename__ = "evaluation_definitions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    content: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_evaluation_definitions_created_at_id", "created_at", "id"),)


class EvaluationRow(QueuedRow, CountedRow, Table):
    """An evaluation of models on rows by graders, and the lease of the worker that runs it.

    `spec` is the evaluation without inline rows, which are in `evaluation_rows`. `rows` is how many rows
    there are; null until they are chosen. `total` is how many answers there will be, `done` how many are
    graded, `failed` how many of these have an error instead of an answer. `waiting_for` says why a running
    evaluation does not go on, `results` are those of an evaluation that succeeded. `origin` is what the route
    that made the evaluation wants to know later.
    """

    __tablename__ = "evaluations"

    name: Mapped[str] = mapped_column(String(255))
    definition_id: Mapped[str | None] = mapped_column(String(32), index=True)
    origin: Mapped[dict[str, Any] | None]
    dataset_id: Mapped[str | None] = mapped_column(String(32), index=True)
    job_id: Mapped[str | None] = mapped_column(String(32), index=True)
    phase: Mapped[str | None] = mapped_column(String(16))
    waiting_for: Mapped[str | None] = mapped_column(Text)
    rows: Mapped[int | None]
    left_out: Mapped[int] = mapped_column(default=0)
    total: Mapped[int | None]
    done: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    results: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_evaluations_state_created_at", "state", "created_at", "id"),
        Index("ix_evaluations_created_at_id", "created_at", "id"),
        Index("ix_evaluations_key_id_state", "key_id", "state"),
        Index("ix_evaluations_key_id_taken_at", "key_id", "taken_at"),
    )


class EvaluationItemRow(Table):
    """One row of an evaluation: what templates read, and what models are asked.

    `number` counts from 0. `line` is the row's line in the dataset. `prompt` has `messages` or `text`, and
    `tools`, in the form of requests to the engine.
    """

    __tablename__ = "evaluation_rows"

    evaluation_id: Mapped[str] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    line: Mapped[int | None]
    item: Mapped[dict[str, Any]]
    prompt: Mapped[dict[str, Any]]


class EvaluationAnswerRow(Table):
    """What one model generated for one row, and its grades, one a grader; null: not graded yet.

    `model` counts the models of the evaluation from 0. `answer` is an `app.core.evaluations.answers.Answer`.
    """

    __tablename__ = "evaluation_answers"

    evaluation_id: Mapped[str] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    answer: Mapped[dict[str, Any]]
    grades: Mapped[list[Any] | None]
