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
    """Buffers text for as long as it may be the beginning of a stop string.

    Takes time in proportion to the text, however long the stop strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._searches = [_Search(stop) for stop in stops]
        # Buffered text, as it was added: joining it at each token would copy a long beginning every time.
        self._parts: deque[str] = deque()
        self._buffered_length = 0
        self.found = False

    def add(self, text: str) -> str:
        """Add text. Returns what may be sent: all before a stop string or a possible beginning of one."""
        self._parts.append(text)
        self._buffered_length += len(text)
        ends = [(end, search) for search in self._searches if (end := search.read(text)) is not None]
        if ends:
            self.found = True
            before = self._buffered_length - len(text)
            sent = self._take(min(before + end - len(search.pattern) for end, search in ends))
            self._take(self._buffered_length)
            return sent
        held = max((search.matched_length for search in self._searches), default=0)
        return self._take(self._buffered_length - held)

    def flush(self) -> str:
        """Returns the buffered text, at the end of the answer."""
        return self._take(self._buffered_length)

    def _take(self, length: int) -> str:
        """Remove so many characters from the beginning of the buffered text, and return them."""
        taken = []
        self._buffered_length -= length
        while length > 0:
            part = self._parts.popleft()
            if len(part) > length:
                self._parts.appendleft(part[length:])
            taken.append(part[:length])
            length -= len(part)
        return "".join(taken)


class _Search:
    """Searches a text that arrives in parts for one pattern (Knuth, Morris and Pratt 1977).

    The table of the pattern's own borders is made only as far as the text has matched.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        # The length of the longest suffix of the text that is a prefix of the pattern.
        self.matched_length = 0
        # By length of a prefix: the length of the longest shorter prefix that is also its suffix.
        self._borders = [0, 0]

    def read(self, text: str) -> int | None:
        """Read the next part of the text. Returns the index in it after the end of the first match."""
        matched, first = self.matched_length, self.pattern[0]
        if not matched and first not in text:
            return None
        for index, character in enumerate(text):
            while matched and self.pattern[matched] != character:
                matched = self._borders[matched]
            if self.pattern[matched] == character:
                matched += 1
                if matched == len(self.pattern):
                    return index + 1
                self._extend_borders(matched)
        self.matched_length = matched
        return None

    def _extend_borders(self, length: int) -> None:
        """Add the border of the prefix of this length, of which all shorter ones are known."""
        if length < len(self._borders):
            return
        border = self._borders[length - 1]
        while border and self.pattern[border] != self.pattern[length - 1]:
            border = self._borders[border]
        self._borders.append(border + (self.pattern[border] == self.pattern[length - 1]))


class TokenBuffer(Generic[Token]):
    """Buffers tokens until some of their text is sent, so that text and tokens are sent together."""

    def __init__(self) -> None:
        self._tokens: deque[tuple[int, Token]] = deque()
        self._added_length = 0
        self._sent_length = 0

    def add(self, token: Token, offset: int = 0) -> None:
        """Add a token whose text begins `offset` characters after all text added so far."""
        self._tokens.append((self._added_length + offset, token))

    def add_text(self, length: int) -> None:
        """Record that the latest token completed `length` characters of text."""
        self._added_length += length

    def take(self, length: int) -> list[tuple[int, Token]]:
        """Returns the tokens that begin in the next `length` characters, each with its place in them."""
        begin = self._sent_length
        self._sent_length += length
        taken = []
        while self._tokens and self._tokens[0][0] < self._sent_length:
            place, token = self._tokens.popleft()
            taken.append((place - begin, token))
        return taken

    def release(self, length: int, *, everything: bool) -> list[Token]:
        """Returns the tokens of the next `length` characters that are sent, or all that are left."""
        self._sent_length += length
        released = []
        while self._tokens and (everything or self._tokens[0][0] < self._sent_length):
            released.append(self._tokens.popleft()[1])
        return released
