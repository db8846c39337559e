"""The last points of the loss curve that were sent, saved in each checkpoint.

Reports that a killed worker had received but not recorded are lost. The attempt that resumes from the
checkpoint sends them again, so that the curve has no gap.
"""

from pydantic import BaseModel

from app.core.jobs.events import Evaluation
from worker.processes.reports import CurvePoint

# A worker records reports every half second, so it never has so many unrecorded points.
_MAX_POINTS = 500


class History(BaseModel):
    """Points in the order they were sent."""

    points: list[CurvePoint] = []

    def add(self, point: CurvePoint) -> None:
        """Add a point; drops the oldest beyond the limit."""
        self.points = [*self.points[1 - _MAX_POINTS :], point]

    def find_unrecorded(self, recorded: CurvePoint | None) -> list[CurvePoint]:
        """The points that come after the last one that the worker has recorded."""
        if recorded is None:
            return self.points
        return [point for point in self.points if _place(point) > _place(recorded)]


def _place(point: CurvePoint) -> tuple[int, bool]:
    """Sort key: the step; a step is logged before it is evaluated."""
    return point.step, isinstance(point, Evaluation)
