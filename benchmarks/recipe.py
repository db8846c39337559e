"""The reference recipe as written, on a GPU: `python -m benchmarks.recipe OUT`.

A Llama-2-7B of random weights is trained by the training child, in fp16 and in bf16; its reports are
recorded.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from app.core.datasets.rows import PlainText, write_row
from app.core.jobs.events import Log, Metrics, Warn
from app.core.specs.job import JobSpec
from benchmarks.estimate_settings import FOLDER, build, describe_machine
from benchmarks.training_setups import make_request
from worker.processes.child_process import ChildProcess
from worker.processes.reports import Ended, Happened, report_adapter

ROWS = 80


def recipe(out: Path) -> None:
    """Train twenty steps of the recipe with fp16 and with bf16 in the training child, and record results."""
    build("llama-7b")
    rows = FOLDER / "rows.jsonl"
    rows.write_bytes(b"".join(_short_chats(ROWS)))
    runs = [_run_child(rows, name) for name in ("fp16", "bf16")]
    out.write_text(json.dumps({**describe_machine("benchmarks.recipe"), "runs": runs}, indent=1) + "\n")
    for run in runs:
        print({name: value for name, value in run.items() if name != "losses"}, run["losses"][-3:])


def _short_chats(count: int) -> list[bytes]:
    """Rows as short as those of the recipe's own data: a question of one line and a short answer."""
    draw = random.Random(0)
    rows = []
    for line in range(1, count + 1):
        question = f"How do I list file number {line}?"
        answer = "Use ls -l. " * draw.randint(3, 20)
        text = f"<s>[INST] {question} [/INST] {answer}</s>"
        rows.append(write_row(line, PlainText(text)))
    return rows


def _run_child(rows: Path, precision: str) -> dict[str, Any]:
    training = {"fp16": precision == "fp16", "bf16": precision == "bf16"}
    spec = JobSpec.model_validate(
        {
            "base_model": "llama-7b",
            "dataset": "ds_benchmark",
            "training": {**training, "logging_steps": 1},
        }
    )
    work = FOLDER / "jobs" / precision
    request = make_request(spec, dataset=rows, models_folder=FOLDER / "models", job_folder=work)
    began = time.monotonic()
    child = ChildProcess("worker.training.run", request, work / "attempt.log")
    metrics: list[Metrics] = []
    said: list[str] = []
    ended = None
    while (line := child.reports.get(timeout=300)) is not None:
        report = report_adapter.validate_json(line)
        if isinstance(report, Happened) and isinstance(report.event, Metrics):
            metrics.append(report.event)
        if isinstance(report, Happened) and isinstance(report.event, Log | Warn):
            said.append(report.event.message)
        ended = report if isinstance(report, Ended) else ended
    seconds = time.monotonic() - began
    child.close()
    outcome = ended.model_dump(mode="json") if ended else child.log_tail()
    files = sorted(path.name for path in request.output_folder.glob("*"))
    return {
        "precision": precision,
        "outcome": outcome,
        "steps": metrics[-1].step if metrics else 0,
        "losses": [metric.loss for metric in metrics],
        "tokens": metrics[-1].tokens if metrics else 0,
        "tokens_per_second": metrics[-1].tokens_per_second if metrics else None,
        "peak_memory_bytes": max((metric.memory_bytes or 0 for metric in metrics), default=0),
        "seconds_in_all": round(seconds, 1),
        "files": files,
        "log": said,
        "spec": spec.model_dump(mode="json"),
    }


if __name__ == "__main__":
    recipe(Path(sys.argv[1]))
