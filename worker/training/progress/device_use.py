"""Memory in use and utilization of the device, read where a step is logged. Knows no trainer."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from worker.models.device import Device

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceUse:
    """`memory_bytes`: in use now, on a GPU by all processes, on a CPU by this one.

    `utilization_percent`: of the time since NVML's last sample, at most a second, in which the GPU ran a
    kernel; None: unknown.
    """

    memory_bytes: int
    utilization_percent: float | None = None


class DeviceUseReader:
    """Reads the use of a device. Utilization comes from NVML, which may be absent or not support the GPU.

    A reading takes well under a millisecond. NVML is not called again after an error.
    """

    def __init__(
        self,
        device: Device,
        *,
        read_memory: Callable[[torch.device], tuple[int, int]] = torch.cuda.mem_get_info,
        read_utilization: Callable[[torch.device], int] = torch.cuda.utilization,
    ) -> None:
        """`read_memory`: (free bytes, all bytes) of a GPU; `read_utilization`: its utilization in percent."""
        self._device = device
        self._process = psutil.Process()
        self._read_memory = read_memory
        self._read_utilization: Callable[[torch.device], int] | None = read_utilization

    def read(self) -> DeviceUse:
        """The use of the device now."""
        if not self._device.is_cuda:
            return DeviceUse(self._process.memory_info().rss)
        free, total = self._read_memory(self._device.torch)
        return DeviceUse(total - free, self._utilization())

    def _utilization(self) -> float | None:
        if self._read_utilization is None:
            return None
        try:
            return float(self._read_utilization(self._device.torch))
        # NVML's errors are classes of a package that may not be installed.
        except Exception as error:
            _log.info("The GPU's utilization can't be read: %s", error)
            self._read_utilization = None
            return None
