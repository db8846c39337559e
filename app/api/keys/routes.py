"""API keys: make, list, change, revoke. What they have used is in `usage.py`."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Path, Response
from fastapi.openapi.models import Example

from app.api.deps import ServicesDep
from app.api.http.access.auth import CallerDep
from app.api.http.errors import documented
from app.api.keys.schemas import CallerRead, CreatedKeyRead, KeyChange, KeyList, KeyRead, NewKey
from app.core.keys import records

router = APIRouter(prefix="/keys", tags=["Keys"])

_EXAMPLES: dict[str, Example] = {
    "app": {
        "summary": "An app that asks models",
        "value": {
            "name": "support-app",
            "scopes": ["infer"],
            "limits": {"requests_per_minute": 120, "tokens_per_day": 2_000_000},
            "expires_in_days": 365,
        },
    },
    "training": {
        "summary": "A pipeline that trains",
        "value": {"name": "nightly", "scopes": ["train"], "limits": {"queued_jobs": 10}},
    },
}
KeyId = Annotated[str, Path(description="The key's id.", examples=["key_4kq1v9x2m7ahc3zt"])]


@router.post("", status_code=201, summary="Make a key", responses=documented(409))
def create_key(
    body: Annotated[NewKey, Body(openapi_examples=_EXAMPLES)], response: Response, services: ServicesDep
) -> CreatedKeyRead:
    """The answer holds the key itself: it is shown only here, and stored as a hash.

    From the first key on, every request needs one; the first needs the scope `admin`, unless
    TUNESMITH_API_KEY is set.
    """
    expires_at = body.expires_at
    if body.expires_in_days is not None:
        expires_at = datetime.now(UTC) + timedelta(days=body.expires_in_days)
    with services.database.transaction() as session:
        if services.settings.api_key is None:
            records.refuse_lockout(session, body.scopes)
        row, secret = records.create(
            session,
            body.name,
            scopes=set(body.scopes),
            limits=body.limits.as_limits(),
            expires_at=expires_at,
        )
    response.headers["location"] = f"/keys/{row.id}"
    return CreatedKeyRead(**KeyRead.from_row(row).model_dump(), key=secret)


@router.get("", summary="List keys")
def list_keys(services: ServicesDep) -> KeyList:
    """All keys, oldest first; revoked ones, too."""
    with services.database.snapshot() as session:
        return KeyList(data=[KeyRead.from_row(row) for row in records.find_all(session)])


@router.get("/self", summary="Show the key of this request")
async def show_caller(caller: CallerDep) -> CallerRead:
    """What the key that was sent may do and take."""
    return CallerRead.from_caller(caller)


@router.get("/{key_id}", summary="Show a key", responses=documented(404))
def show_key(key_id: KeyId, services: ServicesDep) -> KeyRead:
    """Everything but the key itself."""
    with services.database.snapshot() as session:
        return KeyRead.from_row(records.get(session, key_id))


@router.patch("/{key_id}", summary="Change a key", responses=documented(404))
def change_key(key_id: KeyId, body: Annotated[KeyChange, Body()], services: ServicesDep) -> KeyRead:
    """Change its name, scopes, limits or end. It holds within a second; the key itself stays."""
    given = body.model_dump(include=body.model_fields_set & {"name", "expires_at"})
    if given.get("name", "") is None:
        del given["name"]
    if body.scopes is not None:
        given["scopes"] = sorted(set(body.scopes))
    if body.limits is not None:
        given |= asdict(body.limits.as_limits())
    with services.database.transaction() as session:
        return KeyRead.from_row(records.change(session, key_id, **given))


@router.delete("/{key_id}", status_code=204, summary="Revoke a key", responses=documented(404))
def revoke_key(key_id: KeyId, services: ServicesDep) -> None:
    """Make a key worthless, within a second. It stays in the list, and so does what it has used."""
    with services.database.transaction() as session:
        records.revoke(session, key_id)
