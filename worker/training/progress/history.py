"""The last points of the loss curve that were sent, kept in each checkpoint.

A worker that is killed may take reports with it that it had not recorded yet. The attempt that goes on from
the checkpoint sends those again, so that the curve has no hole.
"""

from pydantic import BaseModel

from app.core.jobs.events import Evaluation
from worker.processes.reports import CurvePoint

# A worker records what it reads every half second; nothing makes it lag so far behind.
_KEPT = 500


class History(BaseModel):
    """Points in the order they were sent."""

    points: list[CurvePoint] = []

    def add(self, point: CurvePoint) -> None:
        """Remember a point; the oldest are forgotten."""
        self.points = [*self.points[1 - _KEPT :], point]

    def find_unrecorded(self, recorded: CurvePoint | None) -> list[CurvePoint]:
        """The points that come after the last one that the worker has recorded."""
        if recorded is None:
            return self.points
        return [point for point in self.points if _place(point) > _place(recorded)]


def _place(point: CurvePoint) -> tuple[int, bool]:
    """By step; a step is logged before it is evaluated."""
    return point.step, isinstance(point, Evaluation)
