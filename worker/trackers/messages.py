"""Messages between the worker and the process that writes a run in a tracker. Knows no tracker's package."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.core.specs.states import JobState
from app.core.specs.tracking import Tracker
from worker.processes.reports import ProcessMessage


class TrackingRequest(ProcessMessage):
    """The run to open. Keys are in the environment of the process."""

    tracker: Tracker
    job_id: str
    project: str
    run_name: str
    entity: str | None = None
    tags: list[str] = Field([], description="Tags of the run.")
    config: dict[str, Any] = Field({}, description="The job's spec.")
    run_id: str | None = Field(None, description="The tracker's id of a run to go on with; null: unknown.")
    has_begun: bool = Field(False, description="Whether the run was opened before.")
    folder: Path = Field(description="The job's folder, for files of the tracker.")


class TrackedPoint(ProcessMessage):
    """Values of one step."""

    step: int
    at: datetime
    values: dict[str, float]


class Deliver(ProcessMessage):
    """Points to log, in order."""

    type: Literal["deliver"] = "deliver"
    points: list[TrackedPoint]


class Finish(ProcessMessage):
    """The attempt at the job is over, and this is the job's state. The last message."""

    type: Literal["finish"] = "finish"
    state: JobState


Order = Annotated[Deliver | Finish, Field(discriminator="type")]
order_adapter: TypeAdapter[Order] = TypeAdapter(Order)


class Opened(ProcessMessage):
    """The run is open."""

    type: Literal["opened"] = "opened"
    run_id: str | None = None
    url: str | None = None


class Delivered(ProcessMessage):
    """The tracker has the points of the last Deliver."""

    type: Literal["delivered"] = "delivered"


class Closed(ProcessMessage):
    """The tracker has everything, and knows how the job ended."""

    type: Literal["closed"] = "closed"


class TrackerFailed(ProcessMessage):
    """The tracker refused something or could not be reached. The last message."""

    type: Literal["failed"] = "failed"
    message: str


Reply = Annotated[Opened | Delivered | Closed | TrackerFailed, Field(discriminator="type")]
reply_adapter: TypeAdapter[Reply] = TypeAdapter(Reply)
