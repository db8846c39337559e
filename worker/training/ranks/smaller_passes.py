"""What the ranks of a job with a divided base model do when memory runs out on one of them.

Each of their passes exchanges weights with the others (divided_base.py), so a rank can't repeat a pass for
itself. It ends, and the launcher starts all ranks again from the last checkpoint, with fewer rows in a pass.
"""

from typing import Literal

from pydantic import Field, TypeAdapter

from worker.processes.reports import CurvePoint, ProcessMessage, Report, TrainingRequest


class SmallerPasses(ProcessMessage):
    """A rank's last message: all ranks are to begin again with so many rows in a pass. None: as before."""

    type: Literal["smaller_passes"] = "smaller_passes"
    train_rows: int | None = None
    eval_rows: int | None = None
    reason: str = Field(description="What ran out of memory, in a sentence.")

    def apply(self, request: TrainingRequest, last_point: CurvePoint | None) -> TrainingRequest:
        """The request of the ranks that begin again. `last_point`: of the loss curve, reported last."""
        return request.model_copy(
            update={
                "train_rows_at_once": self.train_rows or request.train_rows_at_once,
                "eval_rows_at_once": self.eval_rows or request.eval_rows_at_once,
                "last_point": last_point or request.last_point,
            }
        )


class MemoryRanOut(Exception):
    """Ends this rank: memory ran out in a pass of a divided base model."""

    def __init__(self, passes: SmallerPasses) -> None:
        super().__init__(passes.reason)
        self.passes = passes


message_adapter: TypeAdapter[Report | SmallerPasses] = TypeAdapter(Report | SmallerPasses)
