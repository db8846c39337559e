"""What a GPU says of itself is read at logged steps alone, and its silence is no fault."""

from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from app.core.jobs.events import Metrics
from tests.worker.training.progress.test_reporter import CPU, GPU, Box
from worker.processes.reports import Happened
from worker.training.progress.device_use import DeviceUse, DeviceUseReader


class Driver:
    """A GPU with 7 of 10 bytes in use, busy for 93 percent of the time."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.readings = 0

    def read_memory(self, device: torch.device) -> tuple[int, int]:
        return 3, 10

    def read_utilization(self, device: torch.device) -> int:
        self.readings += 1
        if self.error:
            raise self.error
        return 93

    def reader(self) -> DeviceUseReader:
        return DeviceUseReader(GPU, read_memory=self.read_memory, read_utilization=self.read_utilization)


def test_a_gpu_is_read() -> None:
    assert Driver().reader().read() == DeviceUse(7, 93.0)


@pytest.mark.parametrize("error", [ModuleNotFoundError("pynvml"), RuntimeError("driver"), Exception("NVML")])
def test_a_utilization_that_can_not_be_read_is_left_out_and_not_read_again(error: Exception) -> None:
    driver = Driver()
    driver.error = error
    reader = driver.reader()

    assert [reader.read(), reader.read()] == [DeviceUse(7), DeviceUse(7)]
    assert driver.readings == 1


def test_a_cpu_has_the_memory_of_the_process() -> None:
    use = DeviceUseReader(CPU).read()

    assert use.memory_bytes > 1 << 20
    assert use.utilization_percent is None


def test_the_device_is_read_where_a_step_is_logged_alone(tmp_path: Any) -> None:
    driver = Driver()
    box = Box(CPU, tmp_path, driver.reader())
    for loss in (3.0, 2.0):
        box.do_step(loss)
    assert driver.readings == 0

    state = TrainerState(global_step=2, max_steps=100)
    box.reporter.on_log(box.args, state, TrainerControl(), {"loss": 2.5})

    (point,) = (one.event for one in box.sent if isinstance(one, Happened))
    assert isinstance(point, Metrics)
    assert (point.memory_used_bytes, point.gpu_utilization_percent, driver.readings) == (7, 93, 1)
