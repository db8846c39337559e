"""Make a thing once, however often the request for it is repeated.

A route that creates something takes `once: OnceDep` and lets it run the transaction:

    def create_thing(body: NewThing, once: OnceDep, services: ServicesDep) -> Thing:
        def make(session: Session) -> Thing:
            return Thing.from_row(things.add(session, body))

        return once.make(make, find=find_thing)

where `find_thing(session, thing_id) -> Thing` answers the present state of one that is there, by its id (64
characters at most). Where work comes before the transaction (an upload to store), `once.find(find_thing)`
answers a repeated request first; and `once.make` may answer with another thing than the one just prepared: a
request with the same key was quicker, and what was prepared can go.

The body counts by its content: JSON by its bytes, a form by its fields and the bytes of its files, which are
read in pieces. A client chooses another boundary for each try, and that makes no difference.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, BinaryIO, Protocol, TypeVar

from anyio import to_thread
from fastapi import Depends, Header, Request
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from app.api.deps import ServicesDep
from app.api.http.auth import bearer_key
from app.core.storage import idempotency
from app.core.storage.database import Database
from app.core.storage.group_commit import GroupCommit
from app.core.storage.idempotency import Identity

ARRIVED_AT = "arrived_at"
_READ_BYTES = 1 << 20
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class HasId(Protocol):
    """Any answer that names what was made."""

    @property
    def id(self) -> str: ...


Made = TypeVar("Made", bound=HasId)


@dataclass(frozen=True)
class Once:
    """One request, and the database that knows whether it came before."""

    database: Database
    commits: GroupCommit
    request: Identity

    def find(self, find: Callable[[Session, str], Made]) -> Made | None:
        """What this request made before, or None. Raises IdempotencyKeyReused."""
        if not self.request.may_repeat:
            return None
        with self.database.snapshot() as session:
            resource_id = idempotency.find(session, self.request)
            return None if resource_id is None else find(session, resource_id)

    def make(self, make: Callable[[Session], Made], *, find: Callable[[Session, str], Made]) -> Made:
        """What this request made before, or what `make` makes now, in one transaction.

        `make` may run twice, the first time for nothing: its effects are those on the session.
        """
        try:
            return self._make(make, find)
        except IntegrityError:
            # On PostgreSQL two requests with one key may get this far; the other one was first.
            return self._make(make, find)
        except Exception:
            self._forget_earlier()
            raise

    def _make(self, make: Callable[[Session], Made], find: Callable[[Session, str], Made]) -> Made:
        def change(session: Session) -> Made:
            row = idempotency.find_row(session, self.request)
            earlier = idempotency.made_by(row, self.request)
            if earlier is not None:
                return find(session, earlier)
            made = make(session)
            idempotency.remember(session, self.request, made.id, row=row)
            return made

        return self.commits.run(change)

    def _forget_earlier(self) -> None:
        if not self.request.may_repeat:
            with self.database.transaction() as session:
                idempotency.forget_earlier(session, self.request)


async def _identify(
    request: Request,
    services: ServicesDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Makes a retry safe: for a day, the same key with the same body answers with what "
            "the first request made.",
        ),
    ] = None,
    x_stainless_retry_count: Annotated[str, Header(include_in_schema=False)] = "",
) -> Once:
    identity = Identity(
        method=request.method,
        path=request.scope["path"],
        body=await _hash_body(request),
        key=idempotency_key,
        client=bearer_key(request.scope),
        retries=int(x_stainless_retry_count) if x_stainless_retry_count.isdecimal() else 0,
        arrived_at=getattr(request.state, ARRIVED_AT, datetime.now(UTC)),
    )
    return Once(services.database, services.commits, identity)


async def _hash_body(request: Request) -> str:
    """SHA-256 of the content. Starlette has kept what FastAPI read: the body, or the form with its files."""
    if not request.headers.get("content-type", "").lower().startswith(_FORMS):
        return hashlib.sha256(await request.body()).hexdigest()
    parts: list[bytes] = []
    for name, value in (await request.form()).multi_items():
        parts.append(name.encode(errors="surrogatepass"))
        if isinstance(value, UploadFile):
            parts.append((value.filename or "").encode(errors="surrogatepass"))
            parts.append(await to_thread.run_sync(_hash_file, value.file))
        else:
            parts.append(value.encode(errors="surrogatepass"))
    return idempotency.digest(parts)


def _hash_file(file: BinaryIO) -> bytes:
    total = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_READ_BYTES):
        total.update(piece)
    file.seek(0)
    return total.digest()


OnceDep = Annotated[Once, Depends(_identify)]
