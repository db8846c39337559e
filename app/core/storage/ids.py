"""Opaque ids: a prefix that says what the thing is, and 80 random bits in lower-case base 32."""

import hashlib
import secrets

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u


def new_id(prefix: str) -> str:
    """Returns a fresh id such as `job_4kq1v9x2m7ahc3zt`; safe in a URL and as a file name."""
    return _spell(prefix, secrets.token_bytes(10))


def derive_id(prefix: str, source: str) -> str:
    """Returns an id that is a function of `source`, of the same shape as `new_id`'s."""
    return _spell(prefix, hashlib.sha256(source.encode()).digest()[:10])


def _spell(prefix: str, random: bytes) -> str:
    number = int.from_bytes(random)
    return f"{prefix}_" + "".join([_ALPHABET[number >> shift & 31] for shift in range(0, 80, 5)])
