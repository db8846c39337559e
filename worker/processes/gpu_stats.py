"""How busy the worker's device is now, for the heartbeat. Loads no torch: it runs the driver's own tool."""

import logging
import subprocess
from typing import Any

import psutil

_log = logging.getLogger(__name__)

_COMMAND = [
    "nvidia-smi",
    "--id=0",
    "--query-gpu=memory.free,utilization.gpu,temperature.gpu",
    "--format=csv,noheader,nounits",
]
# A driver that hangs must not hold up the heartbeat.
_TIMEOUT_SECONDS = 3.0


class GpuStats:
    """Reads free memory, utilization and temperature; a driver's tool that has failed is not run again."""

    def __init__(self, command: list[str] | None = None) -> None:
        self._command = command or _COMMAND
        self._is_broken = False

    def read(self, kind: str | None) -> dict[str, Any]:
        """`free_bytes`, `utilization_percent`, on a GPU `temperature_celsius`; empty where unknown."""
        if kind == "cpu":
            free = psutil.virtual_memory().available
            return {"free_bytes": free, "utilization_percent": round(psutil.cpu_percent())}
        return self._run_tool() if kind == "cuda" and not self._is_broken else {}

    def _run_tool(self) -> dict[str, Any]:
        try:
            completed = subprocess.run(
                self._command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
            )
            return parse(completed.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            _log.warning("The GPU's use can't be read: %s", error)
            self._is_broken = True
            return {}


def parse(line: str) -> dict[str, Any]:
    """Parse the tool's one line: MiB free, percent busy, degrees Celsius. Unknown figures are left out."""
    names = ("free_bytes", "utilization_percent", "temperature_celsius")
    cells = [cell.strip() for cell in line.splitlines()[0].split(",")] if line.strip() else []
    if len(cells) != len(names):
        raise ValueError(f"unexpected output {line!r}")
    scales = (1 << 20, 1, 1)
    return {
        name: int(cell) * scale
        for name, cell, scale in zip(names, cells, scales, strict=True)
        if cell.isdigit()
    }
