"""The memory estimate against measured peaks, on models with random weights.

    python -m benchmarks.estimate measure OUT                    every setting
    python -m benchmarks.estimate measure OUT --settings recipe  some of them, by name; what OUT holds stays
    python -m benchmarks.estimate table FILE                     on any machine: add the estimate to each line

On a GPU, `measure` trains a few steps for each setting, in a fresh process each, with the training child's
own code and the optimizations that a job would use.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.estimate_settings import FOLDER, MODELS, PROCESSES, SETTINGS, Setting, build, describe_machine


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("measure")
    command.add_argument("file", type=Path)
    names = [setting.name for setting in SETTINGS]
    command.add_argument("--settings", nargs="+", choices=names, metavar="SETTING", default=names)
    commands.add_parser("table").add_argument("file", type=Path)
    commands.add_parser("build").add_argument("name", choices=MODELS)
    commands.add_parser("device")
    commands.add_parser("one").add_argument("name", choices=names)
    options = parser.parse_args()
    match options.command:
        case "measure":
            measure(options.file, [setting for setting in SETTINGS if setting.name in options.settings])
        case "table":
            table(options.file)
        case "build":
            build(options.name)
        case "device":
            print(json.dumps(_describe_device()))
        case "one":
            from benchmarks.estimate_run import train

            setting = next(setting for setting in SETTINGS if setting.name == options.name)
            print(json.dumps(train(setting, FOLDER)))


def measure(out: Path, settings: list[Setting]) -> None:
    """Measure each setting in its own process, some at a time; the CUDA context is measured alone."""
    for name in sorted({setting.model for setting in settings}):
        _call("build", name)
    device = json.loads(_call("device"))
    device_memory = DeviceMemory(device["memory_bytes"])
    before = json.loads(out.read_text())["measured"] if out.exists() else []
    lines: dict[str, dict[str, Any]] = {line["name"]: line for line in before}
    with ThreadPoolExecutor(PROCESSES) as threads:
        # The largest first: small ones then fit into the memory that is left.
        ordered = sorted(settings, key=lambda setting: -setting.gigabytes)
        for line in as_completed(threads.submit(_measure_one, setting, device_memory) for setting in ordered):
            lines[line.result()["name"]] = line.result()
            measured = [lines[setting.name] for setting in SETTINGS if setting.name in lines]
            found = {"context_bytes": device["context_bytes"], "measured": measured}
            out.write_text(json.dumps({**describe_machine("benchmarks.estimate"), **found}, indent=1))


class DeviceMemory:
    """The device's memory, reserved for processes that run at the same time."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = self._free_bytes = memory_bytes
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, gigabytes: int) -> Iterator[None]:
        """Wait until so much memory is free, and reserve it within this context."""
        wanted = min(gigabytes * 10**9, self._memory_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._free_bytes >= wanted)
            self._free_bytes -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free_bytes += wanted
                self._changed.notify_all()


def table(path: Path) -> None:
    """Add the estimate to every measurement in the file, and print the table."""
    found = json.loads(path.read_text())
    context_bytes = found["context_bytes"]
    for line in found["measured"]:
        setting = next(setting for setting in SETTINGS if setting.name == line["name"])
        line["setting"] = dataclasses.asdict(setting)
        if "peak_allocated_bytes" in line:
            # The total counts the context, which PyTorch's own figure leaves out.
            memory = estimate_line(setting, line)
            line["estimate"] = {**dataclasses.asdict(memory), "total": memory.total}
            line["error"] = round(memory.total / (find_peak(line) + context_bytes) - 1, 4)
    path.write_text(json.dumps(found, indent=1) + "\n")
    devices = sorted({line.get("device", found["device"]) for line in found["measured"]})
    print(
        f"{' and '.join(devices)}, torch {found['versions']['torch']}; GB, context {context_bytes / 1e9:.2f}"
    )
    print(f"{'setting':34}{'fitted':>7}{'peak':>8}{'spare':>7}{'estimate':>10}{'error':>8}{'reserved':>10}")
    for line in found["measured"]:
        print(_line(line, context_bytes))


def _line(line: dict[str, Any], context_bytes: int) -> str:
    fitted = "yes" if line["setting"]["fitted"] else ""
    start = f"{line['name']:34}{fitted:>7}"
    if "estimate" not in line:
        return f"{start} {line['failure'][-60:]}"
    peak, reserved = find_peak(line) + context_bytes, line["peak_reserved_bytes"] + context_bytes
    spare, total = find_peak(line) - find_needed(line), line["estimate"]["total"]
    figures = f"{peak / 1e9:8.2f}{spare / 1e9:7.2f}{total / 1e9:10.2f}{line['error']:8.1%}"
    return f"{start}{figures}{reserved / 1e9:10.2f}"


def find_peak(line: dict[str, Any]) -> int:
    """Most bytes that a job had allocated, in the trial of the optimizations or in training."""
    return max(int(line[name]) for name in ("peak_trial_bytes", "peak_allocated_bytes"))


def find_needed(line: dict[str, Any]) -> int:
    """Most bytes that a job had allocated, without memory that is released when memory runs short."""
    return max(int(line[name]) for name in ("peak_trial_bytes", "peak_needed_bytes"))


def _call(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.estimate", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def _measure_one(setting: Setting, device_memory: DeviceMemory) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.estimate", "one", setting.name]
    with device_memory.taken(setting.gigabytes):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(setting.name, "done" if done.returncode == 0 else done.stderr[-1500:], flush=True)
    if done.returncode != 0:
        return {"name": setting.name, "failure": done.stderr.strip()[-1000:]}
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _describe_device() -> dict[str, int]:
    """Bytes that CUDA takes besides PyTorch's allocations once a model has run, and bytes of the device."""
    import torch

    free_before = torch.cuda.mem_get_info()[1]
    weights = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(*[weights.view(1, 32, 4096, 128)] * 3).sum().backward()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    context_bytes = min(free_before, total) - free - torch.cuda.memory_reserved()
    return {"context_bytes": context_bytes, "memory_bytes": total}


def estimate_line(setting: Setting, line: dict[str, Any]) -> Any:
    """The estimate for the largest batch that was measured."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from app.core.settings import TrainingPath
    from app.core.specs.job import JobSpec
    from worker.models.device import Device
    from worker.planning import batch_size
    from worker.planning.memory_estimate import BatchShape, estimate
    from worker.planning.model_shape import shape_of
    from worker.planning.optimizations import describe_family

    device = Device(kind="cuda", name="", memory_bytes=0, supports_bf16=True, torch_version=torch.__version__)
    spec = JobSpec.model_validate(setting.spec())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**MODELS[setting.model]))
    shape = shape_of(model, spec.lora)
    job = batch_size.PlannedJob(spec, device, shape, describe_family(model), TrainingPath(setting.path))
    settings, is_padding_free = batch_size.make_memory_settings(job, spec.training)
    largest = max(line["passes"], key=lambda entry: entry["tokens"])
    sequences, tokens = largest["sequences"], largest["tokens"]
    batch = BatchShape(
        sequences,
        tokens // sequences,
        largest["scored"],
        has_mask=setting.rows != "equal" and not is_padding_free,
        padding_free_tokens=tokens if is_padding_free else None,
    )
    return estimate(shape, settings, batch)


if __name__ == "__main__":
    main()
