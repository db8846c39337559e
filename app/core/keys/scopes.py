"""What a key may do. Knows neither keys nor routes."""

from collections.abc import Iterable
from enum import StrEnum


class Scope(StrEnum):
    """A part of what the API does."""

    READ = "read"  # see everything but keys: lists, logs, curves, files
    INFER = "infer"  # ask models
    TRAIN = "train"  # datasets, jobs, adapters, exports, evaluations: make and delete them; includes READ
    ADMIN = "admin"  # everything: keys, aliases, webhooks, deletion of base models and of what is stored


_INCLUDED = {Scope.TRAIN: {Scope.READ}, Scope.ADMIN: set(Scope)}


def allowed(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Returns the scopes with those that they include."""
    found = set(scopes)
    for scope in tuple(found):
        found |= _INCLUDED.get(scope, set())
    return frozenset(found)
