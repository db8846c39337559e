"""Errors of compressed request bodies."""

from app.core.errors import InvalidRequest


class EncodingUnsupported(InvalidRequest):
    """The body is compressed in a way that is not understood."""

    code = "content_encoding_unsupported"


class BodyNotGzip(InvalidRequest):
    """The body is not gzip, although `Content-Encoding` says so."""

    code = "body_not_gzip"
