"""Security headers of every response: a content security policy for each kind of page, no framing."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.access.auth import is_docs
from app.dashboard.pages import is_page

_NO_FRAMES = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Scripts and styles come from files alone, so that user text can't run as code. Trusted types refuse every
# attempt to turn a string into markup or code.
_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    f"{_NO_FRAMES}; require-trusted-types-for 'script'; trusted-types 'none'"
)
# FastAPI's page starts its script inline.
_DOCS = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    f"img-src 'self' data:; connect-src 'self'; {_NO_FRAMES}"
)
# Any other response is no page: a browser that opens it runs nothing.
_OTHER = f"default-src 'none'; {_NO_FRAMES}"
_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class SecurityHeadersMiddleware:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        policy = (b"content-security-policy", _policy(scope["path"]).encode())

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), policy, *_ALWAYS]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _policy(path: str) -> str:
    if is_page(path):
        return _PAGE
    return _DOCS if is_docs(path) else _OTHER
