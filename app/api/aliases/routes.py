"""Aliases: point a name to a model, move it, roll it back, delete it; its versions.

Every change is one transaction, and takes HTTP's preconditions: with `If-Match` two who change an alias at
once can't undo each other's change unseen.
"""

import re
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Response
from fastapi.openapi.models import Example
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.api.aliases.schemas import (
    AliasBody,
    AliasRead,
    AliasVersionPage,
    AliasVersionRead,
    RollbackBody,
)
from app.api.deps import MAX_PAGE, Limit, Services, ServicesDep
from app.api.http.access.auth import CallerDep
from app.api.http.errors import documented
from app.api.schemas import Page
from app.core.adapters.names import find_targets
from app.core.aliases import records
from app.core.aliases.records import Expectation
from app.core.engine import workers
from app.core.errors import InvalidRequest
from app.core.specs.patterns import ALIAS
from app.core.storage import tables

router = APIRouter(prefix="/aliases", tags=["Aliases"])

_EXAMPLES: dict[str, Example] = {
    "adapter": {"summary": "Point to an adapter", "value": {"target": "support-v2"}},
    "shares": {
        "summary": "A trial: a tenth of the requests to a new one",
        "value": {"shares": {"support-v1": 0.9, "support-v2": 0.1}},
    },
}
AliasName = Annotated[
    str, Path(min_length=1, max_length=128, pattern=ALIAS, description="The alias.", examples=["support"])
]
Changed = TypeVar("Changed")
_TAG = re.compile(r'\s*(?:W/)?"([^"]*)"\s*')


def _read_expectation(
    if_match: Annotated[
        str | None,
        Header(
            max_length=200,
            description='The `ETag` that was read, as `"3"`: 412 where the alias was changed since. '
            "`*`: 412 where there is none.",
        ),
    ] = None,
    if_none_match: Annotated[
        str | None, Header(max_length=200, description="Only `*`: 412 where the alias exists.")
    ] = None,
) -> Expectation:
    if if_none_match is not None and if_none_match.strip() != "*":
        raise InvalidRequest("If-None-Match: only `*` is understood here.", param="if-none-match")
    exists = False if if_none_match is not None else None
    if if_match is None:
        return Expectation(exists=exists)
    if if_match.strip() == "*":
        return Expectation(exists=True)
    tags = [_TAG.fullmatch(part) for part in if_match.split(",")]
    # A tag that is no version of ours matches none.
    versions = [int(tag[1]) for tag in tags if tag and tag[1].isdecimal()]
    return Expectation(versions=versions, exists=exists)


ExpectationDep = Annotated[Expectation, Depends(_read_expectation)]


@router.get("", summary="List aliases")
def list_aliases(
    services: ServicesDep,
    after: Annotated[str | None, Query(max_length=128, description="`next` of the page before.")] = None,
    limit: Limit = 50,
) -> Page[AliasRead]:
    """Aliases, by name."""
    with services.database.snapshot() as session:
        rows, cursor = records.find_page(session, after=after, limit=limit)
        return Page(data=[AliasRead.from_row(row) for row in rows], next=cursor)


@router.get("/{name}", summary="Show an alias", responses=documented(404))
def show_alias(name: AliasName, response: Response, services: ServicesDep) -> AliasRead:
    """Where an alias points, and its version, which is also the `ETag`."""
    with services.database.snapshot() as session:
        return _show(records.get(session, name), response)


@router.put(
    "/{name}",
    summary="Point an alias",
    responses=documented(404, 409, 412) | {201: {"model": AliasRead, "description": "It was made."}},
)
def put_alias(
    name: AliasName,
    body: Annotated[AliasBody, Body(openapi_examples=_EXAMPLES)],
    expected: ExpectationDep,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
) -> AliasRead:
    """Point a name to a model, or share it among several; at once, for every API on the database.

    With shares a request is assigned by its `user`, `safety_identifier` or `prompt_cache_key`, so that the
    same one is always served by the same model; without any of them at random. A conversation that goes on
    by `previous_response_id` stays with its model for as long as the alias points there.
    """

    def change(session: Session) -> tuple[tables.AliasRow, bool]:
        is_new = records.find(session, name) is None
        targets = find_targets(session, services.settings, body.as_shares())
        local = workers.find_local_names(session, services.settings)
        row = records.put(
            session, name, targets, base_models=local, expected=expected, changed_by=caller.name
        )
        return row, is_new

    row, is_new = _change(services, change)
    response.status_code = 201 if is_new else 200
    return _show(row, response)


@router.post("/{name}/rollback", summary="Roll an alias back", responses=documented(404, 409, 412))
def roll_back_alias(
    name: AliasName,
    expected: ExpectationDep,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    body: Annotated[RollbackBody | None, Body()] = None,
) -> AliasRead:
    """Point an alias to where it pointed before, which is a new version. Also brings back a deleted one.

    Without a `version` it goes back by one; a second time undoes the first.
    """
    version = body.version if body else None

    def change(session: Session) -> tables.AliasRow:
        local = workers.find_local_names(session, services.settings)
        return records.roll_back(
            session, name, version, base_models=local, expected=expected, changed_by=caller.name
        )

    return _show(_change(services, change), response)


@router.get("/{name}/versions", summary="List an alias's versions", responses=documented(404))
def list_alias_versions(
    name: AliasName,
    services: ServicesDep,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="`next` of the page before.")] = None,
    limit: Limit = MAX_PAGE,
) -> AliasVersionPage:
    """Every change of an alias, the newest first; also of one that was deleted."""
    with services.database.snapshot() as session:
        rows, following = records.find_versions(session, name, before=before, limit=limit)
        return AliasVersionPage(data=[AliasVersionRead.from_row(row) for row in rows], next=following)


@router.delete("/{name}", status_code=204, summary="Delete an alias", responses=documented(404, 412))
def delete_alias(name: AliasName, expected: ExpectationDep, services: ServicesDep, caller: CallerDep) -> None:
    """Delete an alias. What it points to stays, and so do its versions: a rollback brings it back."""
    with services.database.transaction() as session:
        records.delete(session, name, expected=expected, changed_by=caller.name)


def _change(services: Services, change: Callable[[Session], Changed]) -> Changed:
    """Run a change in a transaction; again, where another one made the same alias at the same time."""
    try:
        with services.database.transaction() as session:
            return change(session)
    except IntegrityError:
        with services.database.transaction() as session:
            return change(session)


def _show(row: tables.AliasRow, response: Response) -> AliasRead:
    response.headers["etag"] = f'"{row.version}"'
    return AliasRead.from_row(row)
