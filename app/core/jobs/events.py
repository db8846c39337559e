"""Typed job events: append and read. Rows are `(job_id, seq, at, level, type, data)`.

Appending takes the numbers from the job's own row, so `seq` has no gaps and is unique among writers.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic_core import from_json
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session, aliased

from app.core.errors.jobs import JobNotFound
from app.core.specs.states import JobState, Phase
from app.core.storage import clock, tables
from app.core.webhooks import deliveries

# JSON has no NaN: a loss that is not a number is written as null.
Loss = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class EventLevel(StrEnum):
    """How much an event matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class EventData(BaseModel):
    """What an event says; the subclass is its type."""

    model_config = ConfigDict(extra="forbid")
    level: ClassVar[EventLevel] = EventLevel.INFO


class Log(EventData):
    """A line for the person who watches."""

    type: Literal["log"] = "log"
    message: str = Field(description="What happened.")


class PreferenceFigures(BaseModel):
    """What a method that learns from preferences does to the answers, on average; null for `sft`.

    A reward is how much likelier than the reference model the model has an answer, times beta: of `dpo` and
    `kto` as a difference of log-probabilities; of `orpo`, which has no reference model, the mean
    log-probability of a token times beta.
    """

    reward_chosen: float | None = Field(None, description="Mean reward of preferred or good answers.")
    reward_rejected: float | None = Field(None, description="Mean reward of rejected or bad answers.")
    reward_margin: float | None = Field(None, description="The difference of the two.")
    reward_accuracy: float | None = Field(
        None, description="Share of comparisons, or labelled answers, that the rewards have the right way."
    )
    log_prob_chosen: float | None = Field(
        None, description="Mean log-probability of a whole preferred or good answer."
    )
    log_prob_rejected: float | None = Field(
        None, description="Mean log-probability of a whole rejected or bad answer."
    )


class Metrics(PreferenceFigures, EventData):
    """One logged optimizer step. Loss is the mean since the last one; times are seconds, memory is bytes."""

    type: Literal["metrics"] = "metrics"
    step: int = Field(description="Optimizer steps done.")
    total_steps: int = Field(description="Optimizer steps in all.")
    epoch: float = Field(description="Passes over the dataset done.")
    loss: Loss = Field(description="Mean training loss since the last such event.")
    grad_norm: float | None = Field(None, description="Norm of the gradients before they were clipped.")
    learning_rate: float | None = Field(None, description="At this step.")
    token_accuracy: float | None = Field(None, description="Share of tokens whose likeliest guess was right.")
    tokens: int = Field(0, description="Tokens seen since the start of the job, padding left out.")
    tokens_per_second: float | None = Field(None, description="Training speed.")
    memory_bytes: int | None = Field(None, description="Peak device memory; on a CPU, of the process.")
    memory_used_bytes: int | None = Field(
        None, description="Memory in use now: on a GPU by all processes, on a CPU by this job's."
    )
    gpu_utilization_percent: float | None = Field(
        None, description="Share of the last second in which the GPU computed; null: it can't be read."
    )
    eta_seconds: float | None = Field(None, description="About how long the job still takes.")


class Evaluation(PreferenceFigures, EventData):
    """The loss on the rows held out."""

    type: Literal["eval"] = "eval"
    step: int = Field(description="Optimizer steps done.")
    epoch: float = Field(description="Passes over the dataset done.")
    loss: Loss = Field(description="Mean loss on the rows held out.")
    token_accuracy: float | None = Field(None, description="Share of tokens whose likeliest guess was right.")


class SampleAnswer(BaseModel):
    """What the model in training makes of one prompt. Long texts are cut, with `…` at their end."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="The prompt; of a conversation all its messages before the answer.")
    expected: str | None = Field(None, description="The dataset's answer; null: the prompt is the job's own.")
    answer: str = Field(description="The model's likeliest answer, token by token.")
    is_cut: bool = Field(description="The answer was ended by a limit, not by the model.")


class Samples(EventData):
    """Sample answers of the model in training. Step 0 is the model before training."""

    type: Literal["samples"] = "samples"
    step: int = Field(description="Optimizer steps done.")
    epoch: float = Field(description="Passes over the dataset done.")
    is_final: bool = Field(False, description="The answers are those of the adapter that the job saves.")
    seconds: float = Field(description="How long generating them took.")
    answers: list[SampleAnswer] = Field(description="In the order of the prompts.")


class EvaluatedRow(BaseModel):
    """A row that was held out: its answer, and what base model and adapter make of its prompt.

    Long texts are cut, with `…` at their end. Losses are means over the tokens of the row's answer.
    """

    model_config = ConfigDict(extra="forbid")

    line: int = Field(description="The row's line in its dataset.")
    prompt: str = Field(description="The prompt; of a conversation all its messages before the answer.")
    expected: str = Field(description="The row's answer; of plain text the rest of it.")
    tokens: int = Field(description="Tokens of the row's answer.")
    base_loss: Loss = Field(description="The base model's loss on the row's answer.")
    adapter_loss: Loss = Field(description="The loss with the adapter.")
    base_answer: str | None = Field(
        None, description="The base model's likeliest answer, token by token; null: time was up before."
    )
    base_is_cut: bool = Field(False, description="That answer was ended by a limit, not by the model.")
    adapter_answer: str | None = Field(None, description="The likeliest answer with the adapter.")
    adapter_is_cut: bool = Field(False, description="That answer was ended by a limit, not by the model.")


class FinalEvaluation(EventData):
    """The adapter that a job saves, next to its base model, on rows that were held out."""

    type: Literal["final_eval"] = "final_eval"
    step: int = Field(description="The step whose adapter the job saves.")
    epoch: float = Field(description="Passes over the dataset done at that step.")
    seconds: float = Field(description="How long it took.")
    held_out: int = Field(description="How many rows were held out; `rows` are some of them.")
    base_loss: Loss = Field(description="Mean loss of the base model over all tokens of the rows' answers.")
    adapter_loss: Loss = Field(description="The same with the adapter.")
    rows: list[EvaluatedRow] = Field(description="In the order of the dataset.")


class Checkpoint(EventData):
    """A complete checkpoint is on disk; an interrupted job goes on from it."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int = Field(description="Optimizer steps done.")


class Warn(EventData):
    """Something the person should know; the job goes on."""

    level: ClassVar[EventLevel] = EventLevel.WARNING
    type: Literal["warning"] = "warning"
    code: str = Field(description="A stable word for programs.")
    message: str = Field(description="What happened, for a person.")


class StateChange(EventData):
    """The job entered a state, or a running job entered a phase."""

    type: Literal["state"] = "state"
    state: JobState
    phase: Phase | None = Field(None, description="What a running job does now.")
    attempt: int | None = Field(None, description="Which try this is about.")
    reason: str | None = Field(None, description="Why, for a person.")
    error_code: str | None = Field(None, description="Why the job failed, as a stable word.")
    adapter: str | None = Field(None, description="Name of the adapter that the job made.")


AnyEventData = Annotated[
    Log | Metrics | Evaluation | Samples | FinalEvaluation | Checkpoint | Warn | StateChange,
    Field(discriminator="type"),
]
_EVENT_DATA: TypeAdapter[AnyEventData] = TypeAdapter(AnyEventData)


class Event(BaseModel):
    """One event as it was recorded."""

    seq: int = Field(description="Counts from 1 within the job; `after=seq` and `Last-Event-ID` take it.")
    at: datetime = Field(description="When it was recorded.")
    level: EventLevel
    type: str = Field(description="The kind of event; `data` has the fields of that kind.")
    data: AnyEventData = Field(description="What the event says.")


def append(session: Session, job_id: str, entries: Sequence[AnyEventData]) -> None:
    """Record events of a job, in order, and announce its end to webhooks. Raises JobNotFound."""
    if not entries:
        return
    last_seq = session.scalar(
        update(tables.JobRow)
        .where(tables.JobRow.id == job_id)
        .values(last_event_seq=tables.JobRow.last_event_seq + len(entries))
        .returning(tables.JobRow.last_event_seq)
        .execution_options(synchronize_session=False)
    )
    if last_seq is None:
        raise JobNotFound(f"There is no job {job_id}.")
    at = clock.now(session)
    first_seq = last_seq - len(entries) + 1
    rows = [
        {
            "job_id": job_id,
            "seq": first_seq + offset,
            "at": at,
            "level": _level(entry),
            "type": entry.type,
            "data": _dump(entry),
        }
        for offset, entry in enumerate(entries)
    ]
    session.execute(insert(tables.EventRow), rows)
    for entry in entries:
        # Every change of state is recorded here, so no end of a job is missed.
        if isinstance(entry, StateChange) and entry.state.has_ended:
            deliveries.announce(session, job_id, entry.state)


def first(entry: AnyEventData, at: datetime) -> tables.EventRow:
    """Returns a job's first event, to insert with the job, whose `last_event_seq` is then 1."""
    return tables.EventRow(seq=1, at=at, level=_level(entry), type=entry.type, data=_dump(entry))


def read(
    session: Session, job_id: str, *, after: int = 0, limit: int = 100, types: Sequence[str] = ()
) -> list[Event]:
    """Returns the events of a job with a seq above `after`, oldest first, at most `limit`."""
    query = select(tables.EventRow).where(tables.EventRow.job_id == job_id, tables.EventRow.seq > after)
    if types:
        query = query.where(tables.EventRow.type.in_(types))
    return [_from_row(row) for row in session.scalars(query.order_by(tables.EventRow.seq).limit(limit))]


def read_newest(session: Session, job_id: str, *, before: int | None, limit: int) -> list[Event]:
    """Returns the events of a job with a seq below `before`, newest first, at most `limit`."""
    query = select(tables.EventRow).where(tables.EventRow.job_id == job_id)
    if before is not None:
        query = query.where(tables.EventRow.seq < before)
    return [
        _from_row(row) for row in session.scalars(query.order_by(tables.EventRow.seq.desc()).limit(limit))
    ]


def read_each(session: Session, job_id: str, seqs: Sequence[int]) -> list[Event]:
    """Returns the events of a job with these seqs, oldest first."""
    query = select(tables.EventRow).where(tables.EventRow.job_id == job_id, tables.EventRow.seq.in_(seqs))
    return [_from_row(row) for row in session.scalars(query.order_by(tables.EventRow.seq))]


def read_last(session: Session, job_id: str, *, types: Sequence[str]) -> AnyEventData | None:
    """Returns the data of the newest event of these types, or None."""
    query = select(tables.EventRow).where(tables.EventRow.job_id == job_id, tables.EventRow.type.in_(types))
    row = session.scalar(query.order_by(tables.EventRow.seq.desc()).limit(1))
    return _from_row(row).data if row else None


def read_last_metrics(session: Session, job_ids: Sequence[str]) -> dict[str, Metrics]:
    """Returns the last logged step of each job that has one, in one query."""
    job, own = tables.JobRow, aliased(tables.EventRow)
    last_seq = (
        select(own.seq)
        .where(own.job_id == job.id, own.type == "metrics")
        .order_by(own.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(tables.EventRow)
        .join(job, job.id == tables.EventRow.job_id)
        .where(job.id.in_(job_ids), tables.EventRow.seq == last_seq)
    )
    found = {row.job_id: _from_row(row).data for row in session.scalars(query)}
    return {job_id: data for job_id, data in found.items() if isinstance(data, Metrics)}


def _dump(entry: AnyEventData) -> dict[str, Any]:
    # PostgreSQL refuses NaN in JSON, which `model_dump_json` writes as null.
    data: dict[str, Any] = from_json(entry.model_dump_json(exclude={"type"}))
    return data


def _level(entry: AnyEventData) -> EventLevel:
    failed = isinstance(entry, StateChange) and entry.state is JobState.FAILED
    return EventLevel.ERROR if failed else entry.level


def _from_row(row: tables.EventRow) -> Event:
    data = _EVENT_DATA.validate_python({"type": row.type, **row.data})
    return Event(seq=row.seq, at=row.at, level=EventLevel(row.level), type=row.type, data=data)
