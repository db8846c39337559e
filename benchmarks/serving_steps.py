"""Where the time of a decode step goes: the kernels of a GPU, or PyTorch's operators on a CPU."""

import time
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.random_prompts import prompts
from benchmarks.serving_engine import Bench

_STEPS = 20
_LISTED = 14
_PROMPT_TOKENS = 128
_NAME_LENGTH = 100


def copy_bandwidth() -> float | None:
    """TB/s of a large copy on the GPU, bytes read and bytes written; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_STEPS):
        target.copy_(source)
    torch.cuda.synchronize()
    return round(2 * _STEPS * source.numel() / (time.perf_counter() - began) / 1e12, 2)


def measure_steps(bench: Bench, batch: int, adapters: int) -> dict[str, Any]:
    """Milliseconds of a step of `batch` rows, and how much of it each kernel takes, in microseconds."""
    texts = prompts(batch, _PROMPT_TOKENS, bench.vocabulary_size)
    sequences = bench.begin(texts, adapters, new_tokens=4 * _STEPS)
    while any(len(bench.clock.times.get(one, ())) < 2 for one in sequences):
        bench.engine.step()
    milliseconds = _run_steps(bench)
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        _run_steps(bench)
    bench.finish(sequences)
    times, counts = Counter[str](), Counter[str]()
    for event in profiler.events():
        if not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.name[:_NAME_LENGTH]
            times[name] += event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
            counts[name] += 1
    kernels = [
        {"name": name, "us": round(spent / _STEPS, 1), "count": round(counts[name] / _STEPS, 1)}
        for name, spent in times.most_common(_LISTED)
    ]
    return {
        "ms_a_step": round(milliseconds, 3),
        "us_in_all_kernels": round(times.total() / _STEPS),
        "kernels_a_step": round(counts.total() / _STEPS),
        "kernels": kernels,
    }


def _run_steps(bench: Bench) -> float:
    """Run some steps; returns the milliseconds of one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_STEPS):
        bench.engine.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / _STEPS * 1e3
