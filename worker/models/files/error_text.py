"""Errors of libraries as one line for a person. Knows no torch."""

import re
from pathlib import Path

_MAX_REASON_LENGTH = 300
_FOLDERS_OF_PATH = re.compile(r"(?<![\w.:/])/(?:[\w.@+~-]+/)+")
# Errors whose text, as in KeyError('head_dim'), says little without their name.
_TERSE = (LookupError, TypeError, AttributeError)
_WORDS_OF_SENTENCE = 3


def describe(error: BaseException) -> str:
    """The error's own words in one short line, without folders of this machine and without a full stop."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror} ({Path(str(error.filename)).name})" if error.filename else error.strerror
    text = " ".join(_FOLDERS_OF_PATH.sub("", text).split())
    if isinstance(error, _TERSE) or len(text.split()) < _WORDS_OF_SENTENCE:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    cut = text[:_MAX_REASON_LENGTH].rstrip(".! ")
    return f"{cut}…" if len(text) > _MAX_REASON_LENGTH else cut
