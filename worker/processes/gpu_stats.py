"""How busy the worker's devices are now, for the heartbeat. Loads no torch: it runs the driver's own tool."""

import logging
import subprocess
from typing import Any

import psutil

_log = logging.getLogger(__name__)

_COMMAND = [
    "nvidia-smi",
    "--query-gpu=uuid,memory.free,utilization.gpu,temperature.gpu",
    "--format=csv,noheader,nounits",
]
# A driver that hangs must not hold up the heartbeat.
_TIMEOUT_SECONDS = 3.0

Figures = dict[str, Any]


class GpuStats:
    """Reads free memory, utilization and temperature; a driver's tool that has failed is not run again."""

    def __init__(self, command: list[str] | None = None) -> None:
        self._command = command or _COMMAND
        self._is_broken = False

    def read(self, kind: str | None) -> dict[str | None, Figures]:
        """Returns the figures of each device by its UUID (None: the CPU); empty where they are unknown.

        They are `free_bytes`, `utilization_percent`, and on a GPU `temperature_celsius`.
        """
        if kind == "cpu":
            free = psutil.virtual_memory().available
            return {None: {"free_bytes": free, "utilization_percent": round(psutil.cpu_percent())}}
        return self._run_tool() if kind == "cuda" and not self._is_broken else {}

    def _run_tool(self) -> dict[str | None, Figures]:
        try:
            completed = subprocess.run(
                self._command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
            )
            return parse(completed.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            _log.warning("The use of the GPUs can't be read: %s", error)
            self._is_broken = True
            return {}


def parse(lines: str) -> dict[str | None, Figures]:
    """Parse the tool's lines: UUID, MiB free, percent busy, degrees Celsius. Unknown figures are left out."""
    found = dict(_parse_line(line) for line in lines.splitlines() if line.strip())
    if not found:
        raise ValueError("the tool names no GPU")
    return found


def _parse_line(line: str) -> tuple[str | None, Figures]:
    names, scales = ("free_bytes", "utilization_percent", "temperature_celsius"), (1 << 20, 1, 1)
    uuid, *cells = (cell.strip() for cell in line.split(","))
    if len(cells) != len(names):
        raise ValueError(f"unexpected output {line!r}")
    return uuid, {
        name: int(cell) * scale
        for name, cell, scale in zip(names, cells, scales, strict=True)
        if cell.isdigit()
    }
