"""How fast uploads of each kind are inspected and stored, and with how much memory.

    python -m benchmarks.datasets --rows 1000000

Each kind is read once at a tenth of the rows and once at all of them, each time in a process of its own:
where memory stays flat, both peaks are alike. Files go to a temporary folder.
"""

import argparse
import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from app.core.datasets.inspector import inspect
from app.core.datasets.limits import Limits
from app.core.datasets.rows import read_rows

_RESULTS = Path(__file__).parent / "results"
_KINDS = ("jsonl", "json", "csv", "parquet", "gzip")
_ANSWER_WORDS = 110  # makes a row of about a kilobyte


def main() -> None:
    """Measure every kind that was asked for, print and record the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS))
    parser.add_argument("--machine", default=f"cpu-{os.cpu_count()}-cores", help="name of the results' file")
    parser.add_argument("--inspect", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inspect:
        print(json.dumps(_inspect(arguments.inspect)))
        return
    results = [
        _measure(kind, rows) for kind in arguments.kinds for rows in (arguments.rows // 10, arguments.rows)
    ]
    _record(arguments.machine, results)


def _measure(kind: str, rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        upload = Path(folder) / f"upload.{kind}"
        _WRITERS[kind](upload, rows)
        command = [sys.executable, "-m", "benchmarks.datasets", "--inspect", str(upload)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["rows"] == rows
    result = {"kind": kind, **found}
    print(json.dumps(result), flush=True)
    return result


def _inspect(upload: Path) -> dict[str, Any]:
    """What the child process does: inspect and store, then read what was stored as a job does."""
    idle_mib = _peak_mib()
    stored = upload.with_name("rows.jsonl")
    begin, cpu_begin = time.perf_counter(), time.process_time()
    found = inspect(upload, stored, limits=Limits(max_rows=1 << 40))
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    begin = time.perf_counter()
    with stored.open("rb") as lines:
        rows = sum(1 for _ in read_rows(lines))
    read_seconds = time.perf_counter() - begin
    return {
        "rows": rows,
        "upload_bytes": found.upload.size_bytes,
        "stored_bytes": found.size_bytes,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "rows_per_second": round(rows / seconds),
        "read_rows_per_second": round(rows / read_seconds),
        "idle_memory_mib": idle_mib,
        "peak_memory_mib": _peak_mib(),
    }


def _peak_mib() -> int:
    """The most memory this process had (proc(5)); getrusage would count the parent's before exec as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def make_conversations(count: int) -> Iterator[list[dict[str, str]]]:
    """Conversations of about a kilobyte, the same each time."""
    random_numbers = random.Random(0)
    words = ["adapter", "token", "Größe", "gradient", '"loss"', "epoch", "a,", "batch;", "rank", "😀", "the"]
    for number in range(count):
        answer = " ".join(random_numbers.choices(words, k=_ANSWER_WORDS))
        yield [
            {"role": "system", "content": "You answer questions about training."},
            {"role": "user", "content": f"Question {number}: what happens next?"},
            {"role": "assistant", "content": f"{answer}\n{answer[:200]}"},
        ]


def _write_jsonl(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for messages in make_conversations(count):
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def _write_json(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for number, messages in enumerate(make_conversations(count)):
            file.write(",\n" if number else "")
            json.dump({"messages": messages}, file, ensure_ascii=False)
        file.write("\n]\n")


def _write_csv(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows(
            (messages[1]["content"], messages[2]["content"]) for messages in make_conversations(count)
        )


def _write_parquet(path: Path, count: int) -> None:
    lines = path.with_suffix(".lines")
    _write_jsonl(lines, count)
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT * FROM read_json('{lines}')) TO '{path}' (FORMAT parquet)")
    lines.unlink()


def _write_gzip(path: Path, count: int) -> None:
    _write_jsonl(path, count)
    subprocess.run(["gzip", "-1", str(path)], check=True)
    path.with_name(path.name + ".gz").rename(path)


def _record(machine: str, results: list[dict[str, Any]]) -> None:
    report = {
        "command": f"python -m benchmarks.datasets {' '.join(sys.argv[1:])}",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        },
        "versions": {"python": platform.python_version(), "duckdb": duckdb.__version__},
        "results": results,
    }
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"datasets-{machine}.json").write_text(json.dumps(report, indent=2) + "\n")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


_WRITERS: dict[str, Callable[[Path, int], None]] = {
    "jsonl": _write_jsonl,
    "json": _write_json,
    "csv": _write_csv,
    "parquet": _write_parquet,
    "gzip": _write_gzip,
}

if __name__ == "__main__":
    main()
