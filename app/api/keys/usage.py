"""What keys have used of models, by day."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from app.api.deps import ServicesDep
from app.api.http.access.auth import CallerDep
from app.api.keys.schemas import UsageList, UsageRead
from app.core.errors.access import ScopeMissing
from app.core.keys import records, usage

router = APIRouter(tags=["Keys"])

_DAYS = 30
_MAX_ROWS = 10_000


@router.get("/usage", summary="Show usage")
def show_usage(
    caller: CallerDep,
    services: ServicesDep,
    key: Annotated[
        str | None, Query(max_length=32, description="Id of a key; default: with `admin` all, else the own.")
    ] = None,
    model: Annotated[
        str | None, Query(max_length=400, description="Name of an adapter or base model.")
    ] = None,
    since: Annotated[
        date | None, Query(description=f"First day, in UTC; default: the last {_DAYS} days.")
    ] = None,
    until: Annotated[date | None, Query(description="Last day, in UTC; default: today.")] = None,
) -> UsageList:
    """Requests and tokens by day, key and model, the latest day first; a few seconds old at most.

    Tokens of an answer that its client broke off are estimated.
    """
    until = until or datetime.now(UTC).date()
    since = since or until - timedelta(days=_DAYS - 1)
    if not caller.is_admin:
        if key not in (None, caller.key_id):
            raise ScopeMissing("The usage of another key needs the scope admin.")
        key = caller.key_id
    with services.database.snapshot() as session:
        rows = usage.find(session, key_id=key, model=model, since=since, until=until, limit=_MAX_ROWS)
        names = {row.id: row.name for row in records.find_all(session)}
    return UsageList(data=[UsageRead.from_row(row, names) for row in rows])
