"""The fields of base models that commands show. Fields that another version adds are ignored."""

from datetime import datetime

from pydantic import BaseModel

from app.cli.views import FailureView


class NeedsView(BaseModel):
    """What needs a base model."""

    jobs: list[str] = []
    exports: list[str] = []
    imports: list[str] = []
    adapters: int = 0


class HubModelView(BaseModel):
    """A model of the Hub."""

    name: str
    parameters: int | None = None
    size_bytes: int | None = None
    license: str | None = None
    is_gated: bool = False
    downloads: int | None = None
    downloaded: bool = False


class FitView(BaseModel):
    """Whether a job on a base model fits into the memory of a device."""

    fits: bool
    needed_bytes: int
    memory_bytes: int
    device: str
    parameters: int
    batch_size: int
    row_tokens: int


class DownloadView(BaseModel):
    """A download of a base model."""

    id: str
    base_model: str
    state: str
    done_bytes: int
    total_bytes: int | None = None
    error: FailureView | None = None


class BaseModelView(BaseModel):
    """A base model."""

    name: str
    source: str
    state: str
    architecture: str | None = None
    context_length: int | None = None
    size_bytes: int | None = None
    used_at: datetime | None = None
    needed_by: NeedsView = NeedsView()
