"""Why work failed, as it is recorded for a person."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Why a job, an export or another kind of work failed."""

    code: str
    message: str
    hint: str | None = None
