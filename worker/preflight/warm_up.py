"""The warm-up of the background process, before the first preflight of a user. Imports no torch itself."""

import logging
import time
from typing import Any

from app.core import garbage
from app.core.settings import TrainingPath
from worker.templates.rendering.pool import shared_pool

_log = logging.getLogger(__name__)


def warm_up(device: dict[str, Any], path: TrainingPath) -> None:
    """Run a preflight for this device (`{}`: the one that is found here) and forget its report.

    The process that renders templates starts while this one imports the libraries.
    """
    began = time.monotonic()
    shared_pool().start()
    with garbage.importing():
        from worker.preflight.tiny_preflight import run_tiny_preflight  # takes seconds: imports torch
    imported = time.monotonic()
    run_tiny_preflight(device, path)
    done = time.monotonic()
    _log.info(
        "Ready for preflights: %.1f s of imports, a first one of %.1f s", imported - began, done - imported
    )
