"""The fields of exports that commands show. Fields that another version adds are ignored."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.cli.views import FailureView


class AgreementView(BaseModel):
    """How well the files of an export agree with the live adapter."""

    mean_kl: float
    greedy_match: float


class ExportedFileView(BaseModel):
    """A file of an export."""

    name: str
    size_bytes: int
    agreement: AgreementView | None = None


class ExportView(BaseModel):
    """An export."""

    id: str
    adapter: str
    adapter_name: str
    spec: dict[str, Any]
    state: str
    phase: str | None = None
    queue_position: int | None = None
    progress: float
    agreement: AgreementView | None = None
    notes: list[str] = []
    files: list[ExportedFileView] = []
    url: str | None = None
    error: FailureView | None = None
    created_at: datetime

    @property
    def size_bytes(self) -> int:
        """The size of its files together."""
        return sum(file.size_bytes for file in self.files)
