"""The health check of a container: whether the worker of this machine, or of this container, is at work.

It reads the row that the worker last wrote, and neither signals the worker nor loads torch.
"""

from sqlalchemy.exc import SQLAlchemyError

from app.core.engine import workers
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.database import Database


def find_problem(settings: Settings) -> str | None:
    """Returns why the worker is not healthy; None where it is."""
    database = Database(settings.database_url)
    try:
        with database.snapshot() as session:
            alive = workers.find_alive(session, lease_seconds=settings.lease_seconds)
    except SQLAlchemyError as error:
        return f"The database does not answer: {getattr(error, 'orig', error)}"
    finally:
        database.close()
    # Ids begin with the host's name, which in a container is the container's own.
    here = [worker for worker in alive if worker.id.startswith(f"{workers.name_host()}-")]
    if not here:
        return "No worker of this host has been heard of within a lease."
    return next((complaint for worker in here if (complaint := _complain(worker))), None)


def _complain(worker: tables.WorkerRow) -> str | None:
    if worker.problems:
        return " ".join(worker.problems)
    if "serve" in worker.roles and worker.engine_url is None:
        return "The engine is not up."
    if "serve" in worker.roles and worker.engine_state is None:
        return "The engine does not answer."
    return None
