"""The exporting child with pause points: `worker.exports.run`, which may pause in mid phase."""

import sys

from pydantic import BaseModel

from tests.scripted.pause_points import pause
from worker.exports import run
from worker.exports.reports import Exporting
from worker.processes.child import ParentLink


class PausingLink(ParentLink):
    """May pause after a report that half of a phase is done."""

    def send(self, report: BaseModel) -> None:
        super().send(report)
        if isinstance(report, Exporting) and report.progress >= 0.5:
            pause(report.phase)


if __name__ == "__main__":
    run.ParentLink = PausingLink  # type: ignore[misc]
    run.main(int(sys.argv[1]))
