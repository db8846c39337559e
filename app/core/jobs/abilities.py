"""What a job needs of a worker besides a device: packages of trackers, a token for the Hub."""

from sqlalchemy.orm import Session

from app.core.engine import workers
from app.core.errors import InvalidRequest
from app.core.settings import Settings
from app.core.specs.job import JobSpec
from app.core.specs.tracking import Tracker


def check_workers(session: Session, settings: Settings, spec: JobSpec) -> None:
    """Raise InvalidRequest where workers train and none of them can do all that the job asks for.

    Without any such worker nothing is known, and the job is taken.
    """
    alive = workers.find_alive(session, lease_seconds=settings.lease_seconds, role="train")
    if spec.push_to_hub and alive and not any(worker.has_hub_token is not False for worker in alive):
        raise InvalidRequest(
            "No worker that trains has a token for the Hub.",
            param="push_to_hub",
            hint="Set HF_TOKEN for the worker to a token with write rights, and start it again.",
        )
    for tracker in spec.report_to:
        has_it = any(tracker in worker.trackers for worker in alive)
        if alive and not has_it and tracker is not Tracker.TENSORBOARD:
            raise InvalidRequest(
                f"No worker that trains has the package for {tracker.label}.",
                param="report_to",
                hint=f"Install `tunesmith[{tracker}]` for the worker and start it again, or leave it out.",
            )
