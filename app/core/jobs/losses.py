"""The training losses of many jobs in few points each, for lists that draw a small curve for every job."""

from collections.abc import Sequence

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from app.core.storage.tables import EventRow


def read_thinned(session: Session, job_ids: Sequence[str], *, points: int) -> dict[str, list[float]]:
    """Returns the training losses of each job by step, about `points` of them, in one query.

    The last one is always there. A resumed attempt repeats steps: the last value counts. Jobs without a loss
    are left out.
    """
    place = func.row_number().over(partition_by=EventRow.job_id, order_by=EventRow.seq)
    total = func.count().over(partition_by=EventRow.job_id)
    logged = select(EventRow.job_id, EventRow.seq, place.label("place"), total.label("total"))
    numbered = logged.where(EventRow.job_id.in_(job_ids), EventRow.type == "metrics").subquery().c
    every = numbered.total // points + 1
    query = (
        select(EventRow.job_id, EventRow.data["step"].as_integer(), EventRow.data["loss"].as_float())
        .join(numbered.place.table, and_(numbered.job_id == EventRow.job_id, numbered.seq == EventRow.seq))
        .where(or_((numbered.place - 1) % every == 0, numbered.place == numbered.total))
        .order_by(EventRow.job_id, EventRow.seq)
    )
    by_step: dict[str, dict[int, float]] = {}
    for job_id, step, loss in session.execute(query):
        if loss is not None:
            by_step.setdefault(job_id, {})[step] = loss
    return {job_id: [losses[step] for step in sorted(losses)] for job_id, losses in by_step.items()}
