"""From a job's request to the end of its first step, phase by phase, with a 7B shape in NF4.

With a process started for the job; with a prewarmed one (worker/processes/prewarmed.py), as the first job of
its shape on the machine, for which no kernel is compiled and no trial has passed; and with a prewarmed one
after such a job.

    python -m benchmarks.job_start OUT                    the checkpoint is written first, so it is in memory
    python -m benchmarks.job_start OUT --shape tiny       on a CPU, to see that it runs

What a job does before it has a GPU (claim, dataset to the worker) is milliseconds and not counted.
"""

import argparse
import json
import os
import random
import string
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from app.core.specs.job import JobSpec
from benchmarks import estimate_settings
from benchmarks.training_setups import ROWS, TINY, make_request
from worker.processes.child_process import ChildProcess
from worker.processes.prewarmed import TRAINING_MODULE
from worker.processes.reports import Advanced, Ended, TrainingRequest, report_adapter

# Kinds of runs, and the caches that they use.
_RUNS = (
    *(("new", "one"), ("new", "one"), ("waited", "one"), ("waited", "one")),
    *(("waited, first of its shape", "two"), ("waited, first of its shape", "three")),
)
_SHAPES = {"llama-7b": estimate_settings.SEVEN_B, "tiny": TINY}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=_SHAPES, default="llama-7b")
    parser.add_argument("--folder", type=Path, default=estimate_settings.FOLDER, help="for the base model")
    options = parser.parse_args()
    estimate_settings.build(options.shape, options.folder, _SHAPES[options.shape])
    described = estimate_settings.describe_machine("benchmarks.job_start")
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        # The first run also reads the libraries from the disk.
        for number, (kind, cache) in enumerate(_RUNS):
            os.environ["TRITON_CACHE_DIR"] = f"{scratch}/{cache}/triton"
            work = Path(scratch) / str(number)
            waits, trials = kind != "new", Path(scratch) / cache / "trials"
            found = measure(options.shape, options.folder, work, trials, waits=waits)
            print(kind, found, flush=True)
            runs.setdefault(kind, []).append(found)
            options.out.write_text(json.dumps({**described, "shape": options.shape, **runs}, indent=1) + "\n")


def measure(shape: str, folder: Path, work: Path, trials: Path, *, waits: bool) -> dict[str, float]:
    """Seconds until each phase began and the first step ended: since the process was started, or since a
    prewarmed one got its request; for that one also how long it took to be ready."""
    work.mkdir()
    request = _make_request(shape, folder, work, trials)
    began = time.monotonic()
    child = ChildProcess(TRAINING_MODULE, None if waits else request, work / "log")
    before: dict[str, float] = {}
    try:
        if waits:
            before = _read_until_ready(child)
            began = time.monotonic()
            child.begin(request, work / "attempt.log")
        return before | _read_to_the_first_step(child, began)
    finally:
        child.kill()
        child.close()


def _make_request(shape: str, folder: Path, work: Path, trials: Path) -> TrainingRequest:
    draw = random.Random(0)
    rows = [
        {"line": line, "text": "".join(draw.choices(string.ascii_letters, k=166))} for line in range(ROWS)
    ]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec: dict[str, Any] = {
        "base_model": shape,
        "dataset": "ds_benchmark",
        "training": {"max_steps": 3, "gradient_checkpointing": False, "max_seq_length": 2048},
    }
    return make_request(
        JobSpec.model_validate(spec),
        dataset=work / "rows.jsonl",
        models_folder=folder / "models",
        job_folder=work / "job",
        trials_folder=trials,
    )


def _read_until_ready(child: ChildProcess) -> dict[str, float]:
    began = time.monotonic()
    if child.reports.get(timeout=300) is None:
        raise SystemExit(child.log_tail())
    return {
        "before: imports": round(time.monotonic() - began, 2),
        "before: resident GB": round(psutil.Process(child.pid).memory_info().rss / 1e9, 3),
    }


def _read_to_the_first_step(child: ChildProcess, began: float) -> dict[str, float]:
    found: dict[str, float] = {}
    while (line := child.reports.get(timeout=300)) is not None:
        report = report_adapter.validate_json(line)
        if isinstance(report, Ended) and report.message:
            raise SystemExit(report.message)
        if not isinstance(report, Advanced):
            continue
        name = f"step {report.step}" if report.step else str(report.phase or "")
        if name:
            found.setdefault(name, round(time.monotonic() - began, 2))
        if report.step:
            return found
    raise SystemExit(child.log_tail())


if __name__ == "__main__":
    main()
