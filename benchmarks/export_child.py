"""Runs one export as the exporting child does, without verification, and prints memory and time as JSON.

Started by `benchmarks.exports`, which measures its memory.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from app.core.specs.export import export_spec_adapter
from app.core.specs.job import QuantizationSpec
from benchmarks.exports import anonymous_bytes, read_status
from worker.exports import formats
from worker.exports.formats import ExportInputs
from worker.exports.reports import ExportRequest
from worker.exports.run import _NICENESS


def main(folder: Path, output: str, base: str, shard_bytes: int) -> None:
    """Run the export, print the measurements, and leave only the merged model."""
    os.nice(_NICENESS)
    imports = anonymous_bytes("self")
    began = time.monotonic()
    spec = {"format": output, "base": base, "max_shard_bytes": shard_bytes}
    request = _make_request(folder, spec)
    produced = formats.produce(ExportInputs.gather(request, folder / "base", lambda phase, progress: None))
    seconds = time.monotonic() - began
    print(json.dumps({"imports": imports, "seconds": seconds, "resident": read_status("self", "VmHWM")}))
    if produced.folder != request.merged:
        shutil.rmtree(produced.folder)


def _make_request(folder: Path, spec: dict[str, object]) -> ExportRequest:
    attempt = folder / "attempt"
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir()
    return ExportRequest(
        spec=export_spec_adapter.validate_python(spec),
        adapter_id="ad_0000000000000000",
        adapter_name="measured",
        adapter_folder=folder / "adapter",
        base_model="base",
        quantization=QuantizationSpec(),
        models_folder=folder,
        folder=attempt,
        merged=folder / "merged",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
