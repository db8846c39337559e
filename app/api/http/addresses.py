"""Addresses of requests: a slash at the end means nothing; unknown query parameters are refused."""

import difflib

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import InvalidRequest
from app.dashboard.pages import is_page


class TrailingSlashMiddleware:
    """Reads `/jobs/` as `/jobs`: a redirect would lose the body of a client that does not follow it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.endswith("/") and not is_page(path):
                scope["path"] = path.rstrip("/") or "/"
        await self._app(scope, receive, send)


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise InvalidRequest for a query parameter that the route does not have."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute) or not request.query_params:
        return
    known = _query_parameters(route.dependant)
    for name in request.query_params:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            listed = f"Known here: {', '.join(known)}." if known else "It takes none here."
            raise InvalidRequest(
                f"There is no parameter {name!r}.",
                param=name,
                hint=f"Did you mean `{close[0]}`?" if close else listed,
            )


def _query_parameters(dependant: Dependant) -> list[str]:
    """The names of the query parameters of an endpoint and of all that it depends on."""
    own = [field.alias for field in dependant.query_params]
    return own + [name for inner in dependant.dependencies for name in _query_parameters(inner)]
