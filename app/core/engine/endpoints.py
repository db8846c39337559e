"""The engines of running workers, as the workers table has them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from app.core.engine import workers
from app.core.engine.messages import BaseModelRef
from app.core.engine.state import EngineState
from app.core.errors.engine import NoEngine
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.tables import WorkerRow


@dataclass(frozen=True)
class EngineEndpoint:
    """The address, the token and the state of a live engine."""

    url: str
    token: str
    state: EngineState
    is_silent: bool = False  # it does not respond to its worker
    others: tuple["EngineEndpoint", ...] = ()  # the other live engines, best first

    @property
    def is_paused(self) -> bool:
        """Whether a job has its GPU."""
        return self.state.paused_by is not None

    def holds(self, name: str, quantization: QuantizationSpec | None) -> bool:
        """Whether the base model was loaded at the last heartbeat; without a quantization, any counts."""
        return any(
            loaded.name == name and quantization in (None, loaded.quantization)
            for loaded in self.state.loaded
        )

    def is_loading(self, base_model: BaseModelRef) -> bool:
        """Whether the base model was being loaded at the last heartbeat."""
        loading = self.state.loading
        if loading is None:
            return False
        wanted = (base_model.name, base_model.quantization)
        return (loading.base_model.name, loading.base_model.quantization) == wanted

    def rows_of(self, base_model: BaseModelRef) -> int | None:
        """How many answers it generates at the same time on a base model; None where that is unknown."""
        found = (base.rows for base in self.state.bases if base.base_model.name == base_model.name)
        return next(found, None)


def find_engine(
    session: Session, settings: Settings, *, base_model: str, quantization: QuantizationSpec | None = None
) -> EngineEndpoint:
    """A live engine, and the others; one that has the base model loaded comes first. Raises NoEngine.

    Without a quantization any counts: the request needs no weights.
    """
    alive = workers.find_alive(session, lease_seconds=settings.lease_seconds)
    return choose_engine(as_endpoints(alive), base_model, quantization)


def as_endpoints(alive: Sequence[WorkerRow]) -> list[EngineEndpoint]:
    """The engines of these workers."""
    return [
        EngineEndpoint(
            worker.engine_url,
            worker.engine_token or "",
            EngineState.model_validate(worker.engine_state or {}),
            is_silent=worker.engine_state is None,
        )
        for worker in alive
        if worker.engine_url and "serve" in worker.roles
    ]


def choose_engine(
    engines: Sequence[EngineEndpoint], base_model: str, quantization: QuantizationSpec | None
) -> EngineEndpoint:
    """One of these engines, and the others: as `find_engine`. Raises NoEngine."""
    if not engines:
        raise NoEngine(
            "No engine is running: a worker that serves is still starting, or there is none.",
            hint="GET /ready shows the workers; `python -m worker` starts one.",
        )
    best, *others = sorted(
        engines, key=lambda one: (one.is_silent, one.is_paused, not one.holds(base_model, quantization))
    )
    return replace(best, others=tuple(others))
