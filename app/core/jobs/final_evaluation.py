"""The evaluation with which a job ends, read from its events."""

from sqlalchemy.orm import Session

from app.core.jobs import events
from app.core.jobs.events import FinalEvaluation
from app.core.specs.job import JobSpec
from app.core.specs.states import JobState, Phase
from app.core.storage import tables

# A running job has it by then. Before, its events are not searched at every look at it.
_AFTER_EVALUATION = (Phase.SAVING, Phase.VERIFYING)


def read(session: Session, row: tables.JobRow) -> FinalEvaluation | None:
    """Returns the newest one of a job, or None: not that far, nothing held out, turned off, or aged out."""
    spec = JobSpec.model_validate(row.spec)
    has_rows = bool(spec.validation_dataset or spec.training.validation_split)
    is_late = JobState(row.state).has_ended or row.phase in _AFTER_EVALUATION
    if not (spec.evaluate and has_rows and is_late):
        return None
    found = events.read_last(session, row.id, types=["final_eval"])
    return found if isinstance(found, FinalEvaluation) else None
