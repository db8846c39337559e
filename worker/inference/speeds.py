"""How each base model was served on each path, and how fast: a mean over the last answers. Knows no torch."""

from collections import OrderedDict

from app.core.engine.messages import BaseModelRef, Finished, ServingPath
from app.core.engine.state import ServedPath

_MAX_RECORDS = 32
# Of a new answer in the mean.
_WEIGHT = 0.2
# Shorter answers say little about the speed.
_MIN_TOKENS = 8


class Speeds:
    """The records, the base model that was used last at the end."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[str, ServingPath], ServedPath] = OrderedDict()

    @property
    def records(self) -> list[ServedPath]:
        """All records."""
        return list(self._records.values())

    def add(self, base_model: BaseModelRef, reason: str | None, finished: Finished) -> None:
        """Add a finished answer. `reason`: what in the base model the paged engine can't compute."""
        key = (base_model.name, base_model.path)
        before = self._records.pop(key, None)
        old = before.tokens_per_second if before else None
        new = finished.timings.tokens_per_second if finished.usage.completion_tokens >= _MIN_TOKENS else old
        mean = new if old is None or new is None else (1 - _WEIGHT) * old + _WEIGHT * new
        self._records[key] = ServedPath(
            base_model=base_model.name,
            path=base_model.path,
            reason=reason,
            tokens_per_second=None if mean is None else round(mean, 1),
        )
        while len(self._records) > _MAX_RECORDS:
            self._records.popitem(last=False)
