"""A worker process that only registers, waits for SIGTERM, and unregisters.

With `FAKE_WORKER=die` it exits with status 3 instead.
"""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.settings import Settings
from app.core.storage.database import Database


class _Engine(BaseHTTPRequestHandler):
    """Responds to every request as to one for its health."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        pass


def main() -> int:
    if os.environ.get("FAKE_WORKER") == "die":
        return 3
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    database = Database(Settings().database_url)
    engine = HTTPServer(("127.0.0.1", 0), _Engine)
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    with database.transaction() as session:
        url = f"http://127.0.0.1:{engine.server_port}"
        workers.heartbeat(session, WorkerReport("worker-1", ["train", "serve"], engine_url=url))
    stopped.wait(60)
    with database.transaction() as session:
        workers.leave(session, "worker-1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
