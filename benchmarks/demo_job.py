"""The demo's job on this machine's device: its loss curve and speed, to compare a GPU with a CPU.

    python -m benchmarks.demo_job RESULT.json --models-dir data/models

Runs the real training child on examples/demo-job.json and the example dataset, and writes what it reported.
"""

import argparse
import json
import platform
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.core.datasets.inspector import inspect
from app.core.datasets.limits import Limits
from app.core.jobs.events import Metrics
from app.core.specs.job import JobSpec
from worker.models.device import find_device
from worker.processes.child_process import ChildProcess
from worker.processes.reports import Ended, Happened, TrainingRequest, report_adapter

EXAMPLES = Path(__file__).parents[1] / "examples"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


def main() -> None:
    """Run the job and write its curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--models-dir", type=Path, required=True)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        curve, ended = run(make_request(Path(folder), options.models_dir))
    result = {
        "command": f"python -m benchmarks.demo_job {options.result} --models-dir {options.models_dir.name}",
        "at": datetime.now(UTC).date().isoformat(),
        "device": find_device().name,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "outcome": ended.model_dump(mode="json", exclude_none=True),
        "seconds": round(time.monotonic() - started, 1),
        "curve": curve,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({**result, "curve": [point["loss"] for point in curve]}))


def make_request(folder: Path, models_dir: Path) -> TrainingRequest:
    """The demo's job, with its files in a folder."""
    spec = json.loads((EXAMPLES / "demo-job.json").read_text())
    rows = folder / "rows.jsonl"
    found = inspect(EXAMPLES / "tunesmith-help.jsonl", rows, limits=Limits())
    assert found.format is not None
    return TrainingRequest(
        job_id="job_benchmark",
        attempt=1,
        spec=JobSpec.model_validate({**spec, "dataset": "ds_benchmark"}),
        dataset=rows,
        dataset_format=found.format,
        dataset_sha256=found.sha256,
        models_folder=models_dir.absolute(),
        job_folder=folder / "job",
        output_folder=folder / "adapter",
    )


def run(request: TrainingRequest) -> tuple[list[dict[str, Any]], Ended]:
    """The loss curve, and how the child ended."""
    request.job_folder.mkdir()
    child = ChildProcess("worker.training.run", request, request.job_folder / "attempt.log")
    curve: list[dict[str, Any]] = []
    ended: Ended | None = None
    while (line := child.reports.get()) is not None:
        report = report_adapter.validate_json(line)
        if isinstance(report, Happened) and isinstance(report.event, Metrics):
            curve.append(report.event.model_dump(mode="json", exclude={"type"}))
        elif isinstance(report, Ended):
            ended = report
    child.wait()
    child.close()
    assert ended is not None, child.log_tail()
    return curve, ended


if __name__ == "__main__":
    main()
