"""Deletes base models from the Hub's caches, through engines: the API may have no right to write there."""

from datetime import UTC, datetime, timedelta

from anyio import to_thread

from app.api.base_models.schemas import DeletedModelRead
from app.api.deps import Services
from app.api.http.errors import EngineRefusal
from app.core.base_models.messages import Removed, RemoveRequest
from app.core.base_models.needs import Needs, check_unneeded, find_needs, find_unneeded
from app.core.engine import workers
from app.core.engine.endpoints import EngineEndpoint, find_engine
from app.core.engine.messages import Failed
from app.core.errors import Conflict
from app.core.errors.base_models import ModelInUse, ModelNotDownloaded, ModelNotOurs
from app.core.errors.engine import NoEngine


async def remove(services: Services, name: str) -> DeletedModelRead:
    """Delete one model. Raises ModelNotDownloaded, ModelNotOurs, ModelInUse, NoEngine."""
    engine, needs = await to_thread.run_sync(_prepare, services, name)
    size = 0
    for one in (engine, *engine.others):
        alone = EngineEndpoint(one.url, one.token, one.state)
        answer = await services.engines.request(
            alone, "/base-models/remove", RemoveRequest(base_model=name), Removed
        )
        if isinstance(answer, Failed):
            raise _explain(answer)
        # Of engines that share a cache, the first one deletes.
        size += answer.size_bytes
    await to_thread.run_sync(_forget, services, name)
    return DeletedModelRead(name=name, size_bytes=size, adapters=needs.adapters)


async def remove_unneeded(services: Services, older_than: timedelta) -> tuple[int, int]:
    """Delete every model that nothing needs now and whose last use is longer ago.

    Returns how many and their size in bytes. Raises NoEngine.
    """
    count = size = 0
    for name in await to_thread.run_sync(_find_unused, services, datetime.now(UTC) - older_than):
        try:
            deleted = await remove(services, name)
        except (Conflict, ModelNotDownloaded):
            continue
        count, size = count + 1, size + deleted.size_bytes
    return count, size


async def remove_aged(services: Services) -> int:
    """Delete models that have not been used for as long as the settings say. Returns how many."""
    days = services.settings.keep_base_models_days
    if not days:
        return 0
    try:
        return (await remove_unneeded(services, timedelta(days=days)))[0]
    except NoEngine:  # the next turn may find one
        return 0


def _prepare(services: Services, name: str) -> tuple[EngineEndpoint, Needs]:
    settings = services.settings
    with services.database.snapshot() as session:
        found = {model.name for model in workers.find_downloaded(session, settings)}
        if name not in found:
            if name in workers.find_local_names(session, settings):
                raise ModelNotOurs(
                    f"The base model {name} is in the models folder, where a person has put it.",
                    hint="Delete its folder there; only what was downloaded from the Hub is deleted here.",
                )
            raise ModelNotDownloaded(
                f"There is no downloaded base model {name!r}.", hint="GET /models shows those that are here."
            )
        needs = find_needs(session).get(name, Needs())
        check_unneeded(name, needs, workers.engine_states(session, settings))
        return find_engine(session, settings, base_model=name), needs


def _find_unused(services: Services, before: datetime) -> list[str]:
    with services.database.snapshot() as session:
        needs = find_needs(session)
        found = workers.find_downloaded(session, services.settings)
        states = workers.engine_states(session, services.settings)
    return [model.name for model in find_unneeded(found, needs, states) if model.used_at <= before]


def _forget(services: Services, name: str) -> None:
    with services.database.transaction() as session:
        workers.forget_downloaded(session, name)


def _explain(failed: Failed) -> Exception:
    if failed.code == ModelInUse.code:
        return ModelInUse(failed.message, hint=failed.hint)
    return EngineRefusal(failed)
