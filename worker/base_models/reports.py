"""The messages between the worker and a downloading child: JSON lines over two pipes."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from worker.processes.reports import FailureReport, ProcessMessage


class DownloadRequest(ProcessMessage):
    """The worker's request to a downloading child."""

    base_model: str


class Downloading(ProcessMessage):
    """The download's progress."""

    type: Literal["downloading"] = "downloading"
    done_bytes: int
    total_bytes: int


class Downloaded(ProcessMessage):
    """The model is in the cache. The child's last report."""

    type: Literal["downloaded"] = "downloaded"
    total_bytes: int


class DownloadRefused(FailureReport):
    """The download failed; what has arrived stays in the cache. The child's last report."""


DownloadReport = Annotated[Downloading | Downloaded | DownloadRefused, Field(discriminator="type")]
download_report_adapter: TypeAdapter[DownloadReport] = TypeAdapter(DownloadReport)
