"""What the worker's processes log, and what they must not."""

import subprocess
import sys

CODE = """
import logging
from worker.processes.logs import set_up_logging
set_up_logging()
logging.getLogger("worker").info("a step")
logging.getLogger("httpx").info("GET https://hub.example/file?X-Signature=secret")
logging.getLogger("httpx2").info("GET https://hub.example/file?X-Signature=secret")
logging.getLogger("httpx").warning("no answer")
"""


def test_urls_of_requests_are_not_logged() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)

    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == ["a step", "no answer"]
