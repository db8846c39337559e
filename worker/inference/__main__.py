"""The engine process: `python -m worker.inference <report_fd>`, started by the supervisor.

Starts the process of preflights before it imports the engine: the two import the ML libraries at the same
time, so that the first preflight need not wait for imports.
"""

import os
import sys

from app.core import garbage
from worker.preflight.background_process import BackgroundProcess
from worker.preflight.warm_up import warm_up
from worker.processes.child import ParentLink
from worker.processes.reports import EngineRequest


def main(report_fd: int) -> int:
    """Serve until the worker says stop. Returns the exit status."""
    link = ParentLink(report_fd)
    request = link.read_request(EngineRequest)
    background = BackgroundProcess()
    if request.standby:
        background.start(warm_up, request.device, request.training_path)
    with garbage.importing():
        from worker.inference import server  # takes seconds: imports torch and transformers

    return server.run(link, request, background)


if __name__ == "__main__":
    status = main(int(sys.argv[1]))
    sys.stderr.flush()
    # Skip the interpreter's shutdown, which would join threads that wait for the worker's pipe or a download.
    os._exit(status)
