"""The one format of server-sent events, for the streams of all routes. Pure."""

# Line breaks of Unicode that JSON leaves as they are: clients that split a stream with Python's splitlines()
# or JavaScript's older rules break an event there.
_ESCAPES = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def server_sent(content: str, *, event: str | None = None, id: int | None = None) -> str:
    """An event whose data is `content`, JSON on one line; its Unicode line breaks become JSON's escapes."""
    head = "" if id is None else f"id: {id}\n"
    if event is not None:
        head += f"event: {event}\n"
    return f"{head}data: {content if content.isascii() else content.translate(_ESCAPES)}\n\n"
