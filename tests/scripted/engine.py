"""An engine process that handles only the worker's own requests, over real pipes and HTTP.

`POST /freeze` names what freezes: the `interpreter` (a call that holds its lock for hours), or the `loop` (as
`GET /health` shows it). `POST /busy` has the loop do what may take long, `POST /loading` reports that a base
model is being loaded. `POST /fail` has it name a problem of an engine behind it.
"""

import json
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from app.core.engine.state import EngineHealth, EngineState
from worker.processes.child import ParentLink
from worker.processes.reports import EngineRequest, Listening, StateChanged

state = EngineState()
health = EngineHealth()
links: list[ParentLink] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        shown = health if self.path == "/health" else state
        self._answer(shown.model_dump_json().encode())

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        if self.path == "/freeze" and body["what"] == "interpreter":
            re.match("(.+)+x", "a" * 60)
        if self.path in ("/freeze", "/busy"):
            health.silent_seconds, health.limit_seconds = 100, 10 if self.path == "/freeze" else 1000
        if self.path == "/loading":
            links[0].send(StateChanged(is_loading=True))
        if self.path == "/fail":
            health.problem = body["what"] or None
        state.paused_by = body.get("job_id") if self.path == "/pause" else None
        self._answer(b"{}")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    link = ParentLink(int(sys.argv[1]))
    links.append(link)
    request = link.read_request(EngineRequest)
    server = ThreadingHTTPServer((request.host, request.port), Handler)
    link.watch(on_stop=lambda: os._exit(0))
    link.send(Listening(port=server.server_port))
    server.serve_forever()


if __name__ == "__main__":
    main()
