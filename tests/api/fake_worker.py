"""A worker as the stack and the API see one: it registers, waits for SIGTERM, and leaves.

`FAKE_WORKER=die` ends with status 3 instead.
"""

import os
import signal
import sys
import threading

from app.core import workers
from app.core.database import Database
from app.core.settings import Settings
from app.core.workers import WorkerReport


def main() -> int:
    if os.environ.get("FAKE_WORKER") == "die":
        return 3
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    database = Database(Settings().database_url)
    with database.transaction() as session:
        report = WorkerReport("worker-1", ["train", "serve"], engine_url="http://127.0.0.1:9")
        workers.heartbeat(session, report)
    stopped.wait(60)
    with database.transaction() as session:
        workers.leave(session, "worker-1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
