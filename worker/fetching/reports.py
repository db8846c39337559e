"""The messages between the worker and a fetching child: JSON lines over two pipes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.core.datasets.fetches import HubSource
from app.core.datasets.inspection import Inspection, OnProblem
from app.core.datasets.limits import Limits
from app.core.datasets.unused_fields import OnUnused
from worker.processes.reports import FailureReport, ProcessMessage


class FetchRequest(ProcessMessage):
    """The worker's request to a fetching child."""

    source: HubSource
    column_map: dict[str, str]
    on_problem: OnProblem
    on_unused: OnUnused
    limits: Limits
    folder: Path = Field(description="The fetch's own folder, empty now; removed after it.")

    @property
    def rows(self) -> Path:
        """The file that the rows are written to, in their stored form."""
        return self.folder / "rows.jsonl"


class Fetching(ProcessMessage):
    """The fetch's progress."""

    type: Literal["fetching"] = "fetching"
    commit: str
    rows: int


class Fetched(ProcessMessage):
    """The rows are complete. The child's last report."""

    type: Literal["fetched"] = "fetched"
    found: Inspection


class FetchFailed(FailureReport):
    """The fetch failed and has no rows. The child's last report."""

    problems: list[dict[str, object]] = Field([], description="Rows that can't be used, the first hundred.")
    problem_count: int = 0
    unused_fields: list[dict[str, object]] = Field([], description="Fields for which it was refused.")


FetchReport = Annotated[Fetching | Fetched | FetchFailed, Field(discriminator="type")]
fetch_report_adapter: TypeAdapter[FetchReport] = TypeAdapter(FetchReport)
