"""Makes the points of a job's loss curve from its events, and CSV of them. `loss_chart.py` draws it."""

import csv
import io
from collections.abc import Iterable
from typing import Literal

from app.api.jobs.schemas import LossPointRead
from app.core.jobs.events import Evaluation, Event, Metrics


def from_events(events: Iterable[Event]) -> list[LossPointRead]:
    """Points by step. A resumed attempt repeats steps after its checkpoint: the last value counts."""
    points: dict[tuple[int, str], LossPointRead] = {}
    for event in events:
        if isinstance(event.data, Metrics | Evaluation):
            kind: Literal["train", "eval"] = "train" if isinstance(event.data, Metrics) else "eval"
            fields = event.data.model_dump(include=set(LossPointRead.model_fields))
            points[event.data.step, kind] = LossPointRead(kind=kind, at=event.at, **fields)
    return [points[place] for place in sorted(points, key=lambda place: (place[0], place[1] == "eval"))]


def to_csv(points: Iterable[LossPointRead]) -> str:
    """One line a point, with a header; an empty cell where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(LossPointRead.model_fields), lineterminator="\n")
    writer.writeheader()
    for point in points:
        writer.writerow({**point.model_dump(), "at": point.at.isoformat()})
    return text.getvalue()
