"""Token ids to text, as it is made: no half character goes out, and no part of a stop string.

Knows no tokenizer: a decode function is passed in.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Token = TypeVar("Token")
Decode = Callable[[list[int]], str]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character is at most four bytes, so four tokens; whatever is still broken after so many stays so.
_MAX_HELD_TOKENS = 16
# What a tokenizer makes of a token may depend on those just before it: a leading space, say.
_CONTEXT_TOKENS = 8


class Detokenizer:
    """Decodes one token after another.

    Each token is decoded together with those before it, as text-generation-inference does: two overlapping
    windows, and what the longer one has more than the shorter is new.
    """

    def __init__(self, decode: Decode, context_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context_ids[-_CONTEXT_TOKENS:])
        self._sent = len(self._ids)
        self._sent_text = decode(self._ids) if self._ids else ""

    def add(self, token_id: int) -> str:
        """The text that is complete now; empty while a character is not."""
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
        """The rest, without a character that never became whole."""
        return self._decode(self._ids)[len(self._sent_text) :].rstrip(_BROKEN)


class StopStrings:
    """Holds text back for as long as it may turn out to be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What may go out: up to a stop string, or all but a possible beginning of one."""
        self._held += text
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        self.found = bool(starts)
        cut = min(starts) if starts else len(self._held) - self._beginning_length()
        sent, self._held = self._held[:cut], "" if starts else self._held[cut:]
        return sent

    def flush(self) -> str:
        """What was held back; no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _beginning_length(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        lengths = (
            length
            for stop in self._stops
            for length in range(min(len(stop) - 1, len(self._held)), 0, -1)
            if self._held.endswith(stop[:length])
        )
        return max(lengths, default=0)


class HeldTokens(Generic[Token]):
    """Holds tokens back until some of their text goes out: text and tokens leave together."""

    def __init__(self) -> None:
        self._held: deque[tuple[int, Token]] = deque()
        self._read_length = 0
        self._sent_length = 0

    def add(self, token: Token) -> None:
        """A token whose text begins after what was read so far."""
        self._held.append((self._read_length, token))

    def read(self, length: int) -> None:
        """So much text became whole with the latest token."""
        self._read_length += length

    def release(self, length: int, *, everything: bool) -> list[Token]:
        """The tokens of the next so many characters that go out; or all of them, at the end."""
        self._sent_length += length
        released = []
        while self._held and (everything or self._held[0][0] < self._sent_length):
            released.append(self._held.popleft()[1])
        return released
