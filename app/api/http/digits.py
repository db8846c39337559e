"""Integers of headers. Python refuses to parse more than 4,300 digits, with a ValueError."""

MOST = 2**62
_MAX_DIGITS = 18


def bounded_int(digits: str) -> int:
    """The number that decimal digits say, or `MOST` where there are more than 18 of them."""
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= _MAX_DIGITS else MOST
