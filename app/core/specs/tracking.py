"""Experiment trackers that a job reports to, and how its run is named there. Knows no tracker's package."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from app.core.specs.patterns import RUN_NAME
from app.core.specs.spec import Spec


class Tracker(StrEnum):
    """Where a job's metrics go besides its events. The values are those of transformers' `report_to`."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"
    TRACKIO = "trackio"

    @property
    def label(self) -> str:
        """The tracker's own name, for people."""
        return _LABELS[self]


_LABELS = {
    Tracker.TENSORBOARD: "TensorBoard",
    Tracker.WANDB: "Weights & Biases",
    Tracker.MLFLOW: "MLflow",
    Tracker.TRACKIO: "trackio",
}


def _without_repetitions(trackers: list[Tracker]) -> list[Tracker]:
    for tracker in trackers:
        if trackers.count(tracker) > 1:
            raise ValueError(f"{tracker} is named twice: name each tracker once")
    return trackers


Trackers = Annotated[list[Tracker], Field(max_length=len(Tracker)), AfterValidator(_without_repetitions)]
RunName = Annotated[str, Field(min_length=1, max_length=128, pattern=RUN_NAME)]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=RUN_NAME)]


class TrackingSpec(Spec):
    """How a job's run is named in trackers. Keys are never part of a job: the worker has them."""

    project: RunName = Field(
        "tunesmith", description="The project; in MLflow the experiment.", examples=["support"]
    )
    run_name: RunName | None = Field(None, description="The run; null: the job's name, or else its id.")
    entity: RunName | None = Field(
        None, description="Weights & Biases' user or team; null: that of the worker's key."
    )
    tags: Annotated[list[Tag], Field(max_length=50)] = Field([], description="Tags of the run.")
