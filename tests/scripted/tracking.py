"""A tracking process that follows a script instead of writing a run; the project selects the script.

What it gets goes into `tracked.jsonl` in the job's folder.
"""

import json
import queue
import sys

from worker.processes.child import ParentLink
from worker.trackers.messages import (
    Closed,
    Deliver,
    Delivered,
    Opened,
    TrackerFailed,
    TrackingRequest,
    order_adapter,
)


def main() -> None:
    link = ParentLink(int(sys.argv[1]))
    request = link.read_request(TrackingRequest)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    link.watch_lines(lines.put)
    script = request.project
    opened = request.folder / "opened"
    if script == "hangs":
        lines.get()
    if script == "fails-once" and not opened.exists():
        opened.touch()
        link.send(TrackerFailed(message="Connection to https://me:sesame@tracker refused."))
        return
    link.send(Opened(run_id="run-1", url="https://tracker/run-1"))
    while True:
        order = order_adapter.validate_json(lines.get())
        if script == "hangs-at-the-end" and not isinstance(order, Deliver):
            lines.get()
        # The file is closed before a reply: the parent kills this process at the last one.
        taken = [point.step for point in order.points] if isinstance(order, Deliver) else [order.state]
        with (request.folder / "tracked.jsonl").open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in taken)
        if not isinstance(order, Deliver):
            link.send(Closed())
            return
        link.send(Delivered())


if __name__ == "__main__":
    main()
