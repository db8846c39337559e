"""Jobs with runs in trackers and a push to the Hub, for tests of what shows them."""

from sqlalchemy.orm import Session

from app.core.exports.queue import ExportQueue, ExportResult
from app.core.jobs import pushes, queue, tracking
from app.core.specs.tracking import Tracker
from app.core.work.failures import WorkFailure
from tests.core.exports.test_queue import AGREEMENT
from tests.factories import make_adapter, make_job

REFUSED = WorkFailure("hub_refused", "The worker's token may not write to me/helper.", "Use another token.")
RUN_URL = "https://wandb.ai/me/support/runs/1"


def make_pushing_job(session: Session, *, key_id: str = "", priority: int = 0) -> str:
    """A job of a key that has succeeded, with two runs and a push in the queue. Returns its id."""
    spec = {"repository": "me/helper", "revision": "v2", "tags": ["support"]}
    job = make_job(session, name="helper", push_to_hub=spec, report_to=["tensorboard", "wandb", "mlflow"])
    job.key_id, job.priority = key_id, priority
    lease = queue.claim(session, "worker", lease_seconds=30)
    assert lease is not None
    wandb = tracking.begin(session, lease, Tracker.WANDB)
    tracking.record_opened(session, wandb, run_id="1", url=RUN_URL)
    mlflow = tracking.begin(session, lease, Tracker.MLFLOW)
    tracking.record_problem(session, mlflow, "MLflow lacks 3 points of the job.", None)
    adapter = make_adapter(session, job_id=job.id)
    queue.succeed(session, lease, adapter_name="helper")
    pushes.submit(session, lease, adapter)
    return job.id


def end_push(session: Session, *, url: str | None) -> None:
    """End the oldest push that waits: as succeeded, or as failed where `url` is None."""
    exports = ExportQueue(on_end=pushes.record_end)
    lease = exports.claim(session, lease_seconds=30, max_attempts=3)
    assert lease is not None
    if url is None:
        exports.fail(session, lease, REFUSED)
    else:
        exports.finish(session, lease, ExportResult(files=[], agreement=AGREEMENT, notes=[], url=url))
