"""Idempotent creation: a repeated request returns what the first one created.

A route that creates something takes an `IdempotentRequestDep`, which runs the transaction:

    def create_thing(body: NewThing, idempotent: IdempotentRequestDep, services: ServicesDep) -> ThingRead:
        def create(session: Session) -> ThingRead:
            return ThingRead.from_row(things.add(session, body))

        return idempotent.create(create, find=find_thing)

`find_thing(session, thing_id) -> ThingRead` returns the present state of an existing thing by its id (64
characters at most). Where work comes before the transaction (an upload to store),
`idempotent.find_earlier(find_thing)` returns the result of a repeated request first. `idempotent.create` may
return another thing than the one just prepared: then a request with the same key was faster, and the prepared
files can be deleted.

Bodies are compared by their content: JSON by its bytes, a form by its fields and the bytes of its files,
which are read in pieces. The boundary of a form makes no difference: clients choose another for each try.
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
from app.api.http.access.auth import bearer_key
from app.api.http.digits import bounded_int
from app.core.storage import idempotency
from app.core.storage.database import Database
from app.core.storage.group_commit import GroupCommit
from app.core.storage.idempotency import Identity

ARRIVED_AT = "arrived_at"
_READ_BYTES = 1 << 20
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class HasId(Protocol):
    """What a route returns for a thing that it created."""

    @property
    def id(self) -> str: ...


Created = TypeVar("Created", bound=HasId)


@dataclass(frozen=True)
class IdempotentRequest:
    """One request that creates something, identified by its key or its content."""

    database: Database
    commits: GroupCommit
    request: Identity

    def find_earlier(self, find: Callable[[Session, str], Created]) -> Created | None:
        """What an earlier equal request created, or None. Raises IdempotencyKeyReused."""
        if not self.request.may_repeat:
            return None
        with self.database.snapshot() as session:
            resource_id = idempotency.find(session, self.request)
            return None if resource_id is None else find(session, resource_id)

    def create(
        self, create: Callable[[Session], Created], *, find: Callable[[Session, str], Created]
    ) -> Created:
        """What an earlier equal request created, else what `create` creates now, in one transaction.

        `create` may run twice, the first time in a transaction that is rolled back: it must change the
        session alone.
        """
        try:
            return self._create(create, find)
        except IntegrityError:
            # On PostgreSQL two requests with one key may get this far; the other one has committed.
            return self._create(create, find)
        except Exception:
            self._forget_earlier()
            raise

    def _create(
        self, create: Callable[[Session], Created], find: Callable[[Session, str], Created]
    ) -> Created:
        def change(session: Session) -> Created:
            row = idempotency.find_row(session, self.request)
            earlier = idempotency.made_by(row, self.request)
            if earlier is not None:
                return find(session, earlier)
            created = create(session)
            idempotency.remember(session, self.request, created.id, row=row)
            return created

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
) -> IdempotentRequest:
    identity = Identity(
        method=request.method,
        path=request.scope["path"],
        body=await _hash_body(request),
        key=idempotency_key,
        client=bearer_key(request.scope),
        retries=bounded_int(x_stainless_retry_count) if x_stainless_retry_count.isdecimal() else 0,
        arrived_at=getattr(request.state, ARRIVED_AT, datetime.now(UTC)),
    )
    return IdempotentRequest(services.database, services.commits, identity)


async def _hash_body(request: Request) -> str:
    """SHA-256 of the content. Starlette caches what FastAPI has read: the body, or the form and its files."""
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


IdempotentRequestDep = Annotated[IdempotentRequest, Depends(_identify)]
