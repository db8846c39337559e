"""The points of the loss curve that were sent, saved in each checkpoint.

Reports that a worker had received but not recorded, when it was killed or its database was away for longer
than its lease, are lost. The attempt that resumes from the checkpoint sends them again, so that the curve has
no gap. All points are saved: nothing bounds how many are missing then.
"""

from pydantic import BaseModel

from app.core.jobs.events import Evaluation
from worker.processes.reports import CurvePoint


class History(BaseModel):
    """Points in the order they were sent."""

    points: list[CurvePoint] = []

    def add(self, point: CurvePoint) -> None:
        """Add a point."""
        self.points.append(point)

    def find_unrecorded(self, recorded: CurvePoint | None) -> list[CurvePoint]:
        """The points that come after the last one that the worker has recorded."""
        if recorded is None:
            return self.points
        return [point for point in self.points if _place(point) > _place(recorded)]


def _place(point: CurvePoint) -> tuple[int, bool]:
    """Sort key: the step; a step is logged before it is evaluated."""
    return point.step, isinstance(point, Evaluation)
