"""A job's loss curve: its points out of the events, as JSON and as CSV. loss_chart.py draws it."""

import csv
import io
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.core.jobs.events import Evaluation, Event, Metrics


class LossPoint(BaseModel):
    """One logged step (`train`), or one evaluation on the rows held out (`eval`)."""

    kind: Literal["train", "eval"] = Field(description="Which loss it is.")
    step: int = Field(description="Optimizer step.")
    epoch: float = Field(description="Passes over the dataset done.")
    loss: float = Field(description="`train`: the mean since the last point.")
    token_accuracy: float | None = Field(None, description="Share of tokens whose likeliest guess was right.")
    learning_rate: float | None = Field(None, description="At this step.")
    grad_norm: float | None = Field(None, description="Norm of the gradients before they were clipped.")
    tokens: int | None = Field(None, description="Tokens seen since the start, padding left out.")
    tokens_per_second: float | None = Field(None, description="Training speed.")
    memory_bytes: int | None = Field(None, description="Peak device memory.")
    at: datetime = Field(description="When it was logged.")


class LossCurve(BaseModel):
    """Every point, by step."""

    data: list[LossPoint] = Field(description="The points, by step.")


def from_events(events: Iterable[Event]) -> list[LossPoint]:
    """Points by step. A resumed attempt repeats steps after its checkpoint: the last word counts."""
    points: dict[tuple[int, str], LossPoint] = {}
    for event in events:
        if isinstance(event.data, Metrics | Evaluation):
            kind: Literal["train", "eval"] = "train" if isinstance(event.data, Metrics) else "eval"
            fields = event.data.model_dump(include=set(LossPoint.model_fields))
            points[event.data.step, kind] = LossPoint(kind=kind, at=event.at, **fields)
    return [points[place] for place in sorted(points, key=lambda place: (place[0], place[1] == "eval"))]


def to_csv(points: Iterable[LossPoint]) -> str:
    """One line a point, with a header; an empty cell where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(LossPoint.model_fields), lineterminator="\n")
    writer.writeheader()
    for point in points:
        writer.writerow({**point.model_dump(), "at": point.at.isoformat()})
    return text.getvalue()
