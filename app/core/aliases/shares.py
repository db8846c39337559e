"""Which of an alias's targets serves a request. Pure, but for the draw of a request that names nobody.

A request that names its user is assigned by weighted rendezvous hashing (the logarithmic method of
Schindelhauer and Schomaker, 2005): whoever was assigned stays where they are while shares are unchanged, a
target whose share grows only gains users, and one that is added takes users from the others alone.
"""

import hashlib
import math
import random
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

_HASH_BITS = 52  # a float holds a number of 52 bits and a half


class AliasTarget(BaseModel):
    """What an alias points to, as its row has it. `share` is its part of the requests, of 1 in all."""

    model_config = ConfigDict(frozen=True)
    name: str = Field(description="Name of the adapter or of the base model.")
    base_model: str
    adapter: str | None = None  # its id; None: the base model alone
    step: int | None = None  # of a checkpoint's adapter
    share: float = 1.0

    @property
    def key(self) -> str:
        """What stays the same of the target: the adapter's id, or the base model's name."""
        return self.adapter or self.base_model


def assign(
    alias: str, targets: Sequence[AliasTarget], *, subject: str | None, served_before: str | None = None
) -> AliasTarget:
    """Returns the target that serves a request.

    `served_before` is the key of the target that served the conversation until now; it goes on while the
    alias points there. `subject` names whose request it is: the same one is served by the same target.
    """
    if len(targets) == 1:
        return targets[0]
    for target in targets:
        if target.key == served_before:
            return target
    if subject is None:
        return random.choices(targets, weights=[target.share for target in targets])[0]
    return max(targets, key=lambda target: _score(alias, target, subject))


def _score(alias: str, target: AliasTarget, subject: str) -> float:
    digest = hashlib.sha256("\0".join((alias, target.key, subject)).encode(errors="surrogatepass")).digest()
    number = int.from_bytes(digest[:8]) >> (64 - _HASH_BITS)
    return -target.share / math.log((number + 0.5) / 2**_HASH_BITS)
