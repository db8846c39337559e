"""Merging a 7B model: peak memory and its bound (1.3 times the largest shard plus the adapter), and MB/s.

    python -m benchmarks.exports --folder DIR

Writes a Llama-2-7B of random weights and an adapter into the folder (it takes 41 GB at the most), makes each
export in a process of its own with the code of the real exporting child, up to verification, and writes
`benchmarks/results/exports-<machine>.json`. The folder is removed.

Memory is Linux's RssAnon, the process's anonymous pages, sampled every few milliseconds from outside. It does
not count pages of mapped files, which the system can evict; `peak_resident_mb` (VmHWM) counts them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.export_inputs import Shape, make_adapter, make_base

_RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "safetensors", "bitsandbytes")
_SETTINGS = [(output, base) for base in ("original", "dequantized") for output in ("merged", "pytorch_bin")]
_SAMPLING_SECONDS = 0.003

Row = dict[str, Any]


def main() -> None:
    """Make the inputs, measure every setting, record the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="must not exist; removed at the end")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--mlp", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--shard-bytes", type=int, default=5_000_000_000)
    parser.add_argument("--machine", default=f"cpu-{os.cpu_count()}-cores", help="name of the results' file")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    try:
        shape = Shape(options.layers, options.hidden, options.mlp, options.vocabulary)
        make_base(options.folder / "base", shape, options.shard_bytes)
        make_adapter(options.folder / "base", options.folder / "adapter", options.rank)
        rows: list[Row] = []
        for output, base in _SETTINGS:
            rows.append(_measure(options.folder, output, base, options.shard_bytes))
            print(json.dumps(rows[-1]), flush=True)
            _record(options, rows)
    finally:
        shutil.rmtree(options.folder)


def _measure(folder: Path, output: str, base: str, shard_bytes: int) -> Row:
    """One export in a process of its own. A pickle begins with the merged model of the row before it."""
    command = [sys.executable, "-m", "benchmarks.export_child", str(folder), output, base, str(shard_bytes)]
    load = os.getloadavg()[0]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        peak = _watch(child)
        assert child.stdout is not None
        said = json.loads(child.stdout.read())
    if child.returncode:
        raise SystemExit(child.returncode)
    shards = [path.stat().st_size for path in (folder / "base").glob("*.safetensors")]
    adapter = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    bound = 1.3 * max(shards) + adapter
    return {
        "output": output,
        "base": base,
        "model_mb": _mb(sum(shards)),
        "shards": len(shards),
        "largest_shard_mb": _mb(max(shards)),
        "adapter_mb": _mb(adapter),
        "bound_mb": _mb(bound),
        "peak_mb": _mb(peak),
        "peak_above_imports_mb": _mb(peak - said["imports"]),
        "peak_resident_mb": _mb(said["resident"]),
        "within_bound": peak < bound,
        "seconds": round(said["seconds"], 1),
        "mb_per_second": round(sum(shards) / 1e6 / said["seconds"], 1),
        "process_seconds": round(time.monotonic() - began, 1),
        "load_average": load,
    }


def _watch(child: "subprocess.Popen[str]") -> int:
    """Wait for the process to end. Returns its peak anonymous memory in bytes."""
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous_bytes(child.pid))
        time.sleep(_SAMPLING_SECONDS)
    return peak


def anonymous_bytes(pid: int | str) -> int:
    """A process's anonymous memory (RssAnon) in bytes; 0 when it has ended."""
    return read_status(pid, "RssAnon")


def read_status(pid: int | str, name: str) -> int:
    """A line of /proc/PID/status, in bytes; 0 where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _mb(size: float) -> int:
    return round(size / 1e6)


def _record(options: argparse.Namespace, rows: list[Row]) -> None:
    names = ("layers", "hidden", "mlp", "vocabulary", "rank", "shard_bytes")
    shape = {name: getattr(options, name) for name in names}
    arguments = [f"--{name.replace('_', '-')} {value}" for name, value in shape.items()]
    report = {
        "device": "CPU",
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "versions": {name: version(name) for name in _PACKAGES},
        "python": sys.version.split()[0],
        "command": " ".join(["python -m benchmarks.exports --folder DIR", *arguments]),
        "at": datetime.now(UTC).date().isoformat(),
        "memory": "peak_mb: RssAnon of the whole process, imports included; peak_resident_mb: VmHWM, which "
        "counts clean pages of mapped files",
        "shape": shape,
        "rows": rows,
    }
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"exports-{options.machine}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
