"""Why work failed, as it is recorded for a person."""

from dataclasses import dataclass
from typing import Self

from app.core.errors import TunesmithError


@dataclass(frozen=True)
class WorkFailure:
    """Why a job, an export or another kind of work failed."""

    code: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: TunesmithError) -> Self:
        """The failure with the words of an error."""
        return cls(error.code, error.message, error.hint)
