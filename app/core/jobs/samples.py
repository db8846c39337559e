"""Sample answers of a job, read from its events: by optimizer step, and before and after training."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from app.core.jobs import events
from app.core.jobs.events import Event, SampleAnswer, Samples
from app.core.storage import tables

_STEP: ColumnElement[int] = tables.EventRow.data["step"].as_integer()
_NEWEST = func.max(tables.EventRow.seq)


@dataclass(frozen=True)
class Comparison:
    """Answers before training, and of the adapter that the job saves; None: they are not there."""

    before: Samples | None
    after: Samples | None

    def pairs(self) -> list[tuple[SampleAnswer | None, SampleAnswer | None]]:
        """(before, after) of every prompt, in order."""
        before, after = (side.answers if side else [] for side in (self.before, self.after))
        return list(zip_longest(before, after))


def read_page(
    session: Session, job_id: str, *, after: int | None, limit: int
) -> tuple[list[tuple[Event, Samples]], int | None]:
    """Returns samples of steps above `after`, by step, and the last step of the page where there are more.

    A resumed attempt repeats steps after its checkpoint: the last samples of a step count.
    """
    newest = select(_STEP, _NEWEST).where(*_of_job(job_id)).group_by(_STEP).order_by(_STEP)
    if after is not None:
        newest = newest.where(after < _STEP)
    rows = [(step, seq) for step, seq in session.execute(newest.limit(limit + 1))]
    page = rows[:limit]
    return _read(session, job_id, [seq for _step, seq in page]), page[-1][0] if len(rows) > limit else None


def compare(session: Session, job_id: str) -> Comparison:
    """Returns a job's answers before training and those of its adapter."""
    of_final = tables.EventRow.data["is_final"].as_boolean()
    newest = select(_NEWEST).where(*_of_job(job_id))
    before, after = (session.scalar(newest.where(condition)) for condition in (_STEP.in_([0]), of_final))
    found = {event.seq: samples for event, samples in _read(session, job_id, [before, after])}
    return Comparison(found.get(before or 0), found.get(after or 0))


def _of_job(job_id: str) -> list[ColumnElement[bool]]:
    return [tables.EventRow.job_id == job_id, tables.EventRow.type == "samples"]


def _read(session: Session, job_id: str, seqs: Sequence[int | None]) -> list[tuple[Event, Samples]]:
    found = events.read_each(session, job_id, [seq for seq in seqs if seq is not None])
    pairs = [(event, event.data) for event in found if isinstance(event.data, Samples)]
    return sorted(pairs, key=lambda pair: pair[1].step)
