"""What the views of several nouns share. Fields that another version of the API adds are ignored."""

from pydantic import BaseModel

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class FailureView(BaseModel):
    """Why a job or a fetch failed."""

    code: str
    message: str
    hint: str | None = None


class NoticeView(BaseModel):
    """A warning of a preview or a preflight."""

    code: str
    message: str
