"""The fetching child process, `python -m worker.fetching.run <report_fd>`: a Hub dataset in, its rows out.

It knows neither the database nor the artifact store: the worker, which owns the lease, stores the rows.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence

from app.core.datasets.inspection import Inspection, refuse_fields, refuse_problems
from app.core.datasets.inspector import inspect_hub_table
from app.core.datasets.problems import Record
from app.core.errors import TunesmithError
from app.core.errors.datasets import DatasetDiskFull
from app.core.storage.disk import is_disk_full_error
from worker.fetching.failures import explain, to_report
from worker.fetching.hub_table import HubTable, find_commit, open_table
from worker.fetching.reports import Fetched, Fetching, FetchRequest
from worker.processes.child import ParentLink
from worker.processes.logs import set_up_logging

_REPORT_SECONDS = 1.0

log = logging.getLogger(__name__)


def main(report_fd: int) -> None:
    """Run the fetch that the worker requests and report its result."""
    set_up_logging()
    link = ParentLink(report_fd)
    request = link.read_request(FetchRequest)
    # A partial dataset is of no use, so a stop ends the process at once; the worker removes the folder.
    link.watch(on_stop=lambda: os._exit(0))
    # A Hub name must never match a folder of the working directory.
    os.chdir(request.folder)
    _fetch(request, link)


class _ReportingTable:
    """A table that reports how many of its rows were read, about once a second."""

    def __init__(self, table: HubTable, commit: str, link: ParentLink) -> None:
        self.columns = table.columns
        self._table = table
        self._commit = commit
        self._link = link

    def read(self, columns: Sequence[str], presence_of: Sequence[str]) -> Iterator[Record]:
        reported_at = time.monotonic()
        for number, record in self._table.read(columns, presence_of):
            yield number, record
            if time.monotonic() - reported_at > _REPORT_SECONDS:
                self._link.send(Fetching(commit=self._commit, rows=number))
                reported_at = time.monotonic()


def _fetch(request: FetchRequest, link: ParentLink) -> None:
    table: HubTable | None = None
    found: Inspection | None = None
    try:
        commit = find_commit(request.source)
        link.send(Fetching(commit=commit, rows=0))
        table = open_table(request.source, commit, request.on_unused)
        found = inspect_hub_table(
            _ReportingTable(table, commit, link),
            request.rows,
            limits=request.limits,
            column_map=request.column_map,
        )
        refuse_problems(found, request.on_problem)
        refuse_fields(found, request.on_unused)
    except Exception as error:  # the boundary of the fetch: any error becomes its report
        log.exception("%s could not be fetched", request.source.hub_dataset)
        explained = _explain(error, request, table.rows_read if table else 0)
        link.send(to_report(explained, found.problem_count if found else 0))
        return
    link.send(Fetched(found=found))


def _explain(error: Exception, request: FetchRequest, rows_read: int) -> TunesmithError:
    if is_disk_full_error(error):
        return DatasetDiskFull()
    return explain(error, request.source, rows_read)


if __name__ == "__main__":
    main(int(sys.argv[1]))
