"""The bytes of a token. Decoding a token alone does not give them where it is a part of a character."""

import re
from collections.abc import Callable
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_CACHED_TOKENS = 4096


def make_token_bytes(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bytes]:
    """Returns a function from token ids to bytes. Ids beyond the vocabulary (padded models) have no bytes.

    Vocabularies spell bytes in one of two ways: GPT-2's, one printable letter per byte, and sentencepiece's,
    `<0xE2>` for a byte and `▁` for a space in text.
    """
    spelled = _byte_level if _is_byte_level(tokenizer) else _sentencepiece
    special = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}

    @lru_cache(maxsize=_CACHED_TOKENS)
    def token_bytes(token_id: int) -> bytes:
        if token_id in special:
            return special[token_id].encode()
        token = tokenizer.convert_ids_to_tokens(token_id)
        return spelled(token) if isinstance(token, str) else b""

    return token_bytes


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and b"ByteLevel" in decoder.__getstate__()


def _byte_level(token: str) -> bytes:
    values = byte_letters()
    if not all(letter in values for letter in token):
        return token.encode()
    return bytes(values[letter] for letter in token)


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others the letters from 256 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}
