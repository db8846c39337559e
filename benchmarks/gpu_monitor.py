"""Measures a GPU's clock and power under load, and its sustained speed in matrix products.

A GPU under continuous load reaches its power limit and lowers its clock, so a step takes longer than the sum
of its kernels, each measured alone. Samples come from nvidia-smi.
"""

import statistics
import subprocess
import time
from typing import Any

import torch

_FIELDS = "clocks.sm,clocks.max.sm,power.draw,power.limit,clocks_event_reasons.sw_power_cap"
_SAMPLE_MS = 100
_SECONDS_OF_PRODUCTS = 4.0
# The largest product of the reference model's layers.
_TOKENS, _INPUTS, _OUTPUTS = 8192, 4096, 11008


class GpuMonitor:
    """Samples nvidia-smi within its context."""

    def __enter__(self) -> "GpuMonitor":
        self._process = subprocess.Popen(
            ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits", f"-lms={_SAMPLE_MS}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_error: Any) -> None:
        self._process.terminate()
        self._output, _ = self._process.communicate()

    def summary(self) -> dict[str, Any]:
        """Means over the samples; `slowed_by_power`: the share of them with a clock lowered by the limit."""
        lines = [line.split(", ") for line in self._output.splitlines() if line.count(", ") == 4]
        if not lines:
            return {}
        clocks, top, power, limit = ([float(line[column]) for line in lines] for column in range(4))
        slowed = [line[4] == "Active" for line in lines]
        return {
            "clock_mhz": round(statistics.mean(clocks)),
            "highest_clock_mhz": round(top[0]),
            "power_watts": round(statistics.mean(power)),
            "power_limit_watts": round(limit[0]),
            "slowed_by_power": round(sum(slowed) / len(slowed), 2),
        }


def measure_products() -> dict[str, Any]:
    """TFLOP/s of one large bfloat16 product, repeated: at first, and when the GPU is warm."""
    x = torch.randn(_TOKENS, _INPUTS, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(_OUTPUTS, _INPUTS, device="cuda", dtype=torch.bfloat16)
    output = x.new_empty(_TOKENS, _OUTPUTS)
    flops = 2.0 * _TOKENS * _INPUTS * _OUTPUTS
    speeds: list[float] = []
    with GpuMonitor() as monitor:
        began = time.perf_counter()
        while time.perf_counter() - began < _SECONDS_OF_PRODUCTS:
            start = time.perf_counter()
            for _ in range(200):
                torch.mm(x, weight.t(), out=output)
            torch.cuda.synchronize()
            speeds.append(200 * flops / (time.perf_counter() - start) / 1e12)
    return {"tflops_at_first": round(max(speeds)), "tflops_sustained": round(speeds[-1]), **monitor.summary()}
