"""The tracking process: writes one run in one tracker. `python -m worker.trackers.run <report_fd>`.

A process of its own: it may hang, die or be killed without any effect on the job.
"""

import contextlib
import os
import queue
import sys
import traceback

from pydantic import BaseModel

from worker.processes.child import ParentLink
from worker.processes.redaction import redact
from worker.trackers.messages import (
    Closed,
    Deliver,
    Delivered,
    Opened,
    TrackerFailed,
    TrackingRequest,
    order_adapter,
)
from worker.trackers.runs import open_run

_NICENESS = 10
_MAX_MESSAGE = 500


def main() -> None:
    """Open the run that the request on standard input describes, and log what follows."""
    os.nice(_NICENESS)  # training needs the processor more
    link = ParentLink(int(sys.argv[1]))
    request = link.read_request(TrackingRequest)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    link.watch_lines(lines.put)
    link.send(_write_run(request, lines, link))
    # Threads of a tracker's package may wait for a server.
    os._exit(0)


def _write_run(request: TrackingRequest, lines: "queue.SimpleQueue[bytes]", link: ParentLink) -> BaseModel:
    """Write the run to its end. Returns the last report."""
    try:
        run = open_run(request)
        link.send(Opened(run_id=run.run_id, url=redact(run.url) if run.url else None))
        while True:
            order = order_adapter.validate_json(lines.get())
            if not isinstance(order, Deliver):
                run.finish(order.state)
                return Closed()
            for point in order.points:
                run.log(point)
            run.flush()
            link.send(Delivered())
    # SystemExit too: it is how some packages refuse a configuration.
    except (Exception, SystemExit) as error:
        with contextlib.suppress(OSError):
            print(redact(traceback.format_exc()), file=sys.stderr, flush=True)
        lines_of_error = str(error).strip().splitlines() or [type(error).__name__]
        return TrackerFailed(message=redact(lines_of_error[0])[:_MAX_MESSAGE])


if __name__ == "__main__":
    main()
