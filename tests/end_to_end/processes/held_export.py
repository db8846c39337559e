"""The exporting child, held: `worker.exports.run`, which may be stopped half-way through each phase."""

import sys

from pydantic import BaseModel

from tests.scripted.held import hold
from worker.exports import run
from worker.exports.reports import Exporting
from worker.processes.child import ParentLink


class HeldLink(ParentLink):
    """Stops after it has said that half of a phase is done."""

    def send(self, report: BaseModel) -> None:
        super().send(report)
        if isinstance(report, Exporting) and report.progress >= 0.5:
            hold(report.phase)


if __name__ == "__main__":
    run.ParentLink = HeldLink  # type: ignore[misc]
    run.main(int(sys.argv[1]))
