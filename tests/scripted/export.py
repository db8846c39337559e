"""An exporting child that writes a partial file, the GPU it may use, and waits until it is stopped or killed.

When it is stopped, it first writes the file `asked` next to the merged model.
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
    (request.folder / "half").write_text(request.gpu or "no GPU")
    threading.Event().wait()
