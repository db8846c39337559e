"""Training on 1, 2, 4 and 8 GPUs of a host, with the same rows in a step: `benchmarks.training --gpus`.

On one GPU a step makes as many passes as there are GPUs in all, so the losses of every count are to be equal.
Each count has processes of its own, which load the base model afresh. Without a GPU they compute on the CPU.
"""

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import estimate_settings
from benchmarks.several_gpus_ranks import Task
from benchmarks.training_setups import Setup


def make_setups(*, batch: int, checkpointing: bool, steps: int) -> list[Setup]:
    """The base model in 4 bits on every GPU, and in 16 bits divided between the GPUs."""
    common: dict[str, Any] = {
        "r": 16,
        "dropout": 0.0,
        "all_linear": True,
        "optim": "adamw_torch_fused",
        "packing": True,
        "batch": batch,
        "checkpointing": checkpointing,
        "steps": steps,
        "warm_up": min(5, steps // 2),
        "logging_steps": 5,
    }
    return [
        Setup("packed, NF4, DDP", strategy="ddp", **common),
        # On one GPU also by transformers' own layers, as where GPUs divide the base model.
        Setup("packed, 16 bits, FSDP2", "plain", strategy="fsdp", in_4bit=False, **common),
    ]


def measure(
    out: Path,
    setups: list[Setup],
    *,
    gpus: int,
    shape: str,
    fields: dict[str, Any],
    rows: int,
    longest: int,
    folder: Path,
    seconds: float,
) -> None:
    """Measure every setup on every count of GPUs; a failure is written to its line."""
    began = time.monotonic()
    name = f"{shape}-{fields['num_hidden_layers']}-layers"
    found = {**_prepare(name, fields, folder, gpus), "shape": shape, "fields": fields}
    lines: list[dict[str, Any]] = []
    for setup in setups:
        alone: dict[str, Any] | None = None
        for count in _counts(gpus):
            own = replace(setup, gpus=count, accumulation=gpus // count)
            task = Task(own, name, fields["vocab_size"], rows, longest, str(folder))
            line = {"name": setup.name, "gpus": count, "setup": asdict(own)}
            is_late = time.monotonic() - began > seconds
            line |= {"failure": "there was no time left"} if is_late else _run(task, alone)
            alone = line if count == 1 and "failure" not in line else alone
            lines.append(line)
            print(_describe(line, alone), flush=True)
            out.write_text(json.dumps({**found, "measured": lines}, indent=1) + "\n")


def _prepare(name: str, fields: dict[str, Any], folder: Path, gpus: int) -> dict[str, Any]:
    """Write the base model. Returns what the machine is."""
    # In a process that ends: one that has used a GPU holds memory of it.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        present = process.submit(_count_gpus).result()
        if 0 < present < gpus:
            sys.exit(f"This machine has {present} GPUs, not {gpus}.")
        process.submit(estimate_settings.build, name, folder, fields).result()
        return process.submit(estimate_settings.describe_machine, "benchmarks.training").result()


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _counts(gpus: int) -> Iterator[int]:
    """1, 2, 4 ... and, last, all."""
    count = 1
    while count < gpus:
        if gpus % count == 0:
            yield count
        count *= 2
    yield gpus


def _run(task: Task, alone: dict[str, Any] | None) -> dict[str, Any]:
    """The figures of all ranks together, also compared with those of one GPU."""
    with tempfile.TemporaryDirectory() as parent:
        given, results = Path(parent) / "task.json", Path(parent) / "results.json"
        given.write_text(task.to_json())
        command = [sys.executable, "-m", "benchmarks.several_gpus_ranks", str(given), str(results)]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            return {"failure": ended.stderr[-4000:]}
        return _add_up(json.loads(results.read_text()), alone)


def _add_up(ranks: list[dict[str, Any]], alone: dict[str, Any] | None) -> dict[str, Any]:
    first = ranks[0]
    milliseconds = max(rank["ms_a_step"] for rank in ranks)
    tokens = sum(rank["tokens_a_step"] for rank in ranks)
    speed = tokens / milliseconds * 1e3
    # Of one step, the last, in which a profiler runs.
    profiles = [rank["profile"] for rank in ranks]
    found = {
        "ms_a_step": milliseconds,
        "ms_of_steps": first["ms_of_steps"],
        "tokens_a_step": tokens,
        "tokens_per_second": round(speed),
        "collectives_share": _mean_share(profiles, "collectives_ms"),
        # Nothing was computed meanwhile.
        "exposed_collectives_share": _mean_share(profiles, "exposed_collectives_ms"),
        "memory_bytes": [rank.get("device_memory_bytes", rank["peak_memory_bytes"]) for rank in ranks],
        "peak_memory_bytes": [rank["peak_memory_bytes"] for rank in ranks],
        "losses": first["losses"],
        "seconds_in_all": max(rank["seconds_in_all"] for rank in ranks),
        "said": first["said"],
        "profiles": profiles,
    }
    if alone:
        pairs = zip(first["losses"], alone["losses"], strict=True)
        found["speedup"] = round(speed / alone["tokens_per_second"], 3)
        found["losses_of_one_gpu"] = alone["losses"]
        found["largest_loss_difference"] = max(abs(loss - other) / other for loss, other in pairs)
    return found


def _mean_share(profiles: list[dict[str, Any]], name: str) -> float:
    return round(mean(profile[name] / profile["step_ms"] for profile in profiles), 4)


def _describe(line: dict[str, Any], alone: dict[str, Any] | None) -> str:
    start = f"{line['name']:26}{line['gpus']:3} GPUs"
    if "failure" in line:
        return f"{start}  {line['failure'][-200:]}"
    memory = max(line["memory_bytes"]) / 1e9
    beside = f" (one GPU {alone['losses'][-1]:.4f})" if alone and alone is not line else ""
    return (
        f"{start}{line['ms_a_step']:9.1f} ms{line['tokens_per_second']:8} tokens/s"
        f"{line.get('speedup', 1.0):7.2f} x{line['collectives_share']:7.1%} collectives"
        f" ({line['exposed_collectives_share']:.1%} exposed){memory:7.1f} GB"
        f"   last loss {line['losses'][-1]:.4f}{beside}"
    )
