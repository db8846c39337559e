"""Replaces halves of surrogate pairs in bodies: UTF-8, and so the database, can't hold them.

Clients that cut a text in the middle of an emoji send them. Done with the bytes of a JSON body, before they
are parsed, so that no route, no field and no name of a field can be forgotten. A form in UTF-8 has none.
"""

import re

from starlette.types import Scope

_HIGH, _LOW = rb"u[dD][89abAB][0-9a-fA-F]{2}", rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
# An escape with what it escapes, so that an escaped backslash begins none; or the bytes of a surrogate.
_ESCAPE = re.compile(
    rb"(?P<pair>\\%b\\%b)|(?P<half>\\(?:%b|%b))|\\.|(?P<bytes>\xed[\xa0-\xbf][\x80-\xbf])"
    % (_HIGH, _LOW, _HIGH, _LOW),
    re.DOTALL,
)
_CHARSET = re.compile(rb";\s*charset=[^;]*", re.IGNORECASE)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_ESCAPED_REPLACEMENT, _REPLACEMENT = rb"\ufffd", "\ufffd".encode()


def replace_surrogates(body: bytes) -> bytes:
    """Returns a JSON body in UTF-8 with U+FFFD in place of each half of a surrogate pair."""
    return _ESCAPE.sub(_replace, body) if _SURROGATE.search(body) else body


def read_form_as_utf8(scope: Scope) -> None:
    """Remove the character set of a form, which names one of Python's codecs to Starlette.

    A form's texts are UTF-8 (RFC 7578). Some codecs, as `unicode_escape`, decode to halves of surrogates.
    """
    scope["headers"] = [
        (name, _CHARSET.sub(b"", value) if name == b"content-type" and _is_form(value) else value)
        for name, value in scope["headers"]
    ]


def _is_form(content_type: bytes) -> bool:
    return content_type.lstrip().lower().startswith(b"multipart/")


def _replace(found: re.Match[bytes]) -> bytes:
    if found["half"]:
        return _ESCAPED_REPLACEMENT
    return _REPLACEMENT if found["bytes"] else found[0]
