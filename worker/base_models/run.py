"""The downloading child process, `python -m worker.base_models.run <report_fd>`: a Hub model into the cache.

What has arrived stays there, so that a further download goes on with it. Knows no torch.
"""

import logging
import os
import shutil
import sys
import time

from app.core.errors import TunesmithError
from app.core.errors.base_models import ModelDiskFull
from app.core.storage.disk import is_disk_full_error
from worker.base_models.reports import Downloaded, Downloading, DownloadRefused, DownloadRequest
from worker.models.files import hub, hub_cache
from worker.models.files.error_text import describe
from worker.processes.child import ParentLink
from worker.processes.logs import set_up_logging

_REPORT_SECONDS = 0.5
_SPARE_BYTES = 64 << 20

_log = logging.getLogger(__name__)


def main(report_fd: int) -> None:
    """Run the download that the worker requests and report its result."""
    set_up_logging()
    link = ParentLink(report_fd)
    request = link.read_request(DownloadRequest)
    link.watch(on_stop=lambda: os._exit(0))
    try:
        total_bytes = _download(request.base_model, link)
    except Exception as error:  # the boundary of the download: any error becomes its report
        _log.exception("%s could not be downloaded", request.base_model)
        found = _explain(error, request.base_model)
        link.send(DownloadRefused(code=found.code, message=found.message, hint=found.hint))
        return
    link.send(Downloaded(total_bytes=total_bytes))


def _download(name: str, link: ParentLink) -> int:
    """Returns the size of the model's files in bytes. Raises TunesmithError and whatever the library does."""
    total_bytes, cached_bytes = hub.count_bytes(name)
    _check_disk_space(name, total_bytes - cached_bytes)
    link.send(Downloading(done_bytes=cached_bytes, total_bytes=total_bytes))
    reporter = _Reporter(link, cached_bytes, total_bytes)
    hub.fetch(name, hub.FILES, tqdm_class=hub.make_bar(reporter.report))
    return total_bytes


class _Reporter:
    """Reports how many bytes have arrived, about twice a second."""

    def __init__(self, link: ParentLink, cached_bytes: int, total_bytes: int) -> None:
        self._link = link
        self._cached_bytes = cached_bytes
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._reported_at = time.monotonic()

    def report(self, done_bytes: int, _bytes_in_bar: int) -> None:
        """Called by each of the bars that count bytes: of one transfer they count about the same."""
        self._done_bytes = max(self._done_bytes, done_bytes)
        if time.monotonic() - self._reported_at < _REPORT_SECONDS:
            return
        self._reported_at = time.monotonic()
        done = min(self._cached_bytes + self._done_bytes, self._total_bytes)
        self._link.send(Downloading(done_bytes=done, total_bytes=self._total_bytes))


def _check_disk_space(name: str, needed: int) -> None:
    cache = hub_cache.find_cache()
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < needed + _SPARE_BYTES:
        raise ModelDiskFull(
            f"{name} takes {needed / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free.",
            hint="Delete base models that nobody needs, then download it again.",
        )


def _explain(error: Exception, name: str) -> TunesmithError:
    if isinstance(error, TunesmithError):
        return error
    if is_disk_full_error(error):
        return ModelDiskFull(hint="Delete base models that nobody needs, then download it again.")
    return hub.explain(name, error) or _DownloadFailure(
        f"{name} could not be downloaded: {describe(error)}.",
        hint="The worker's downloads.log has the details.",
    )


class _DownloadFailure(TunesmithError):
    """The download failed."""

    code = "download_failed"


if __name__ == "__main__":
    main(int(sys.argv[1]))
