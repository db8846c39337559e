"""An exporting child that writes half of what it should and then waits for its end; leaves a word if it was
asked for that.
"""

import os
import sys
import threading

from app.core.specs.states import ExportPhase
from worker.exports.reports import Exporting, ExportRequest
from worker.processes.child import ParentLink

if __name__ == "__main__":
    link = ParentLink(int(sys.argv[1]))
    request = link.read_request(ExportRequest)
    link.watch(on_stop=lambda: ((request.merged.parent / "asked").touch(), os._exit(0)))
    link.send(Exporting(phase=ExportPhase.MERGING, progress=0.5))
    (request.folder / "half").write_bytes(b"half")
    threading.Event().wait()
