"""The embedding of a text: the mean of the last hidden states over its tokens, of length 1. Knows no torch.

The states are added up while the text is read, in chunks, and the sum is scaled once: scaled to length 1, it
is what the mean would be.
"""

import base64
import math
import struct
from typing import Protocol, Self

from worker.inference.failures import ScoresNotFinite


class HiddenSum(Protocol):
    """The sum of the last hidden states of a chunk's tokens, a vector that may still be on the device."""

    def __add__(self, other: Self, /) -> Self:
        """The sum of the tokens of both."""

    def tolist(self) -> list[float]:
        """The numbers. Waits for the device."""


def pack_embedding(hidden_sum: HiddenSum) -> str:
    """The vector scaled to length 1, as little-endian 32-bit floats in base64. Raises ScoresNotFinite."""
    values = hidden_sum.tolist()
    length = math.hypot(*values)
    if not math.isfinite(length) or length == 0:
        raise ScoresNotFinite("hidden states of the text")
    return base64.b64encode(struct.pack(f"<{len(values)}f", *(value / length for value in values))).decode()
