"""A look at a job's base model before the job is queued, by an engine where one runs."""

import logging

from anyio import from_thread, move_on_after

from app.api.deps import Services
from app.api.http.errors import EngineRefusal
from app.core.engine.endpoints import EngineEndpoint, find_engine
from app.core.engine.messages import Failed
from app.core.engine.preflight import Checked, CheckRequest
from app.core.errors.engine import EngineFailed, NoEngine
from app.core.jobs import continuation
from app.core.specs.job import JobSpec

# The first look starts a process that imports the libraries, which takes some seconds.
_MAX_SECONDS = 15.0

_log = logging.getLogger(__name__)


def check_base_model(services: Services, spec: JobSpec) -> None:
    """Refuse a job that can't run on its base model, as far as config and tokenizer tell.

    Called from a thread of a route. A job is taken unseen where no engine runs or none responds in time, and
    where the base model is not on the engine's machine yet: it then fails while it prepares, before weights
    are downloaded. Raises EngineRefusal, and the errors of `continuation.resolve`.
    """
    with services.database.snapshot() as session:
        if spec.continue_from:
            spec = continuation.resolve(session, spec)
        try:
            engine = find_engine(session, services.settings, base_model=spec.base_model)
        except NoEngine:
            return
    found = from_thread.run(_ask, services, engine, CheckRequest(spec=spec))
    if found is not None and found.kind == "invalid":
        raise EngineRefusal(found)


async def _ask(services: Services, engine: EngineEndpoint, request: CheckRequest) -> Failed | None:
    """The reason why the job can't run; None where there is none, or none is known."""
    with move_on_after(_MAX_SECONDS):
        try:
            answer = await services.engines.request(engine, "/check", request, Checked)
        except EngineFailed as error:
            _log.info("The engine did not look at the base model of a new job: %s", error)
            return None
        return answer if isinstance(answer, Failed) else None
    return None
