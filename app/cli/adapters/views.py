"""The fields of adapters that commands show. Fields that another version adds are ignored."""

from datetime import datetime

from pydantic import BaseModel

from app.cli.views import FailureView


class AdapterView(BaseModel):
    """An adapter."""

    id: str
    name: str
    base_model: str
    job: str | None = None
    step: int | None = None
    state: str = "ready"
    error: FailureView | None = None
    size_bytes: int
    created_at: datetime
