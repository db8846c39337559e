"""Streams token ids as text, without incomplete characters and without any part of a stop string.

Knows no tokenizer: a decode function is passed in.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Token = TypeVar("Token")
Decode = Callable[[list[int]], str]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so four tokens; text that is broken after so many tokens stays so.
_MAX_HELD_TOKENS = 16
# The text of a token may depend on the tokens just before it (a leading space, for instance).
_CONTEXT_TOKENS = 8


class Detokenizer:
    """Decodes one token after another.

    Each token is decoded together with the tokens before it, as text-generation-inference does: two windows
    with the same start are decoded, and the text that only the longer one has is new.
    """

    def __init__(self, decode: Decode, context_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context_ids[-_CONTEXT_TOKENS:])
        self._sent = len(self._ids)
        self._sent_text = decode(self._ids) if self._ids else ""

    def add(self, token_id: int) -> str:
        """Add a token. Returns the new text; empty while its last character is incomplete."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        incomplete = text.endswith(_BROKEN) or len(text) <= len(self._sent_text)
        if incomplete and len(self._ids) - self._sent < _MAX_HELD_TOKENS:
            return ""
        new = text[len(self._sent_text) :]
        self._ids = self._ids[self._sent :]
        self._sent = len(self._ids)
        self._sent_text = self._decode(self._ids)
        return new

    def finish(self) -> str:
        """Returns the remaining text, without an incomplete last character."""
        return self._decode(self._ids)[len(self._sent_text) :].rstrip(_BROKEN)


class StopStrings:
    """Buffers text for as long as it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._buffered = ""
        self.found = False

    def add(self, text: str) -> str:
        """Add text. Returns what may be sent: all before a stop string or a possible beginning of one."""
        self._buffered += text
        starts = [start for stop in self._stops if (start := self._buffered.find(stop)) >= 0]
        self.found = bool(starts)
        cut = min(starts) if starts else len(self._buffered) - self._beginning_length()
        sent, self._buffered = self._buffered[:cut], "" if starts else self._buffered[cut:]
        return sent

    def flush(self) -> str:
        """Returns the buffered text, at the end of the answer."""
        text, self._buffered = self._buffered, ""
        return text

    def _beginning_length(self) -> int:
        """Length of the longest suffix of the buffered text that is a prefix of a stop string."""
        lengths = (
            length
            for stop in self._stops
            for length in range(min(len(stop) - 1, len(self._buffered)), 0, -1)
            if self._buffered.endswith(stop[:length])
        )
        return max(lengths, default=0)


class TokenBuffer(Generic[Token]):
    """Buffers tokens until some of their text is sent, so that text and tokens are sent together."""

    def __init__(self) -> None:
        self._tokens: deque[tuple[int, Token]] = deque()
        self._added_length = 0
        self._sent_length = 0

    def add(self, token: Token) -> None:
        """Add a token whose text begins after all text added so far."""
        self._tokens.append((self._added_length, token))

    def add_text(self, length: int) -> None:
        """Record that the latest token completed `length` characters of text."""
        self._added_length += length

    def release(self, length: int, *, everything: bool) -> list[Token]:
        """Returns the tokens of the next `length` characters that are sent, or all that are left."""
        self._sent_length += length
        released = []
        while self._tokens and (everything or self._tokens[0][0] < self._sent_length):
            released.append(self._tokens.popleft()[1])
        return released
