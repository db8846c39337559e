"""On a GPU the next step is launched before the loss of the last one is read; nothing is lost by it."""

from typing import Any

import pytest
import torch
from pydantic import BaseModel
from transformers import TrainerControl, TrainerState, TrainingArguments

from app.core.errors.jobs import LossNotFinite
from worker.models.device import Device
from worker.processes.reports import Advanced
from worker.training.progress.callbacks import Reporter
from worker.training.progress.counters import Counters
from worker.training.progress.device_use import DeviceUseReader
from worker.training.progress.history import History
from worker.training.progress.loss_guard import LossGuard

CPU = Device(kind="cpu", name="CPU", memory_bytes=1, supports_bf16=False, torch_version="2.13.0")
GPU = CPU.model_copy(update={"kind": "cuda"})


class Box:
    """A reporter, its clock, and what it has sent."""

    def __init__(self, device: Device, tmp_path: Any, device_use: DeviceUseReader | None = None) -> None:
        self.counters = Counters()
        self.sent: list[BaseModel] = []
        self.now = 0.0
        guard = LossGuard(self.counters, 1000)
        self.reporter = Reporter(
            self.sent.append,
            self.counters,
            History(),
            guard,
            device,
            clock=lambda: self.now,
            device_use=device_use,
        )
        self.args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        self.step = 0

    def do_step(self, loss: float, **flags: bool) -> None:
        self.step += 1
        state = TrainerState(global_step=self.step, max_steps=100, epoch=0.5)
        self.reporter.on_step_begin(self.args, state, TrainerControl())
        self.counters.add_tokens(torch.tensor(10))
        self.counters.add_loss(torch.tensor(loss))
        self.now += 2.0
        self.reporter.on_step_end(self.args, state, TrainerControl(**flags))

    @property
    def losses(self) -> list[tuple[int | None, float | None]]:
        return [(one.step, one.loss) for one in self.sent if isinstance(one, Advanced)]


@pytest.mark.parametrize(("device", "known"), [(CPU, 3), (GPU, 2)], ids=["cpu", "gpu"])
def test_a_gpu_is_one_step_ahead(device: Device, known: int, tmp_path: Any) -> None:
    box = Box(device, tmp_path)

    for loss in (3.0, 2.0, 1.0):
        box.do_step(loss)

    assert box.losses == [(1, 3.0), (2, 2.0), (3, 1.0)][:known]
    assert (box.counters.tokens, box.counters.last_loss) == (10 * known, 4.0 - known)


@pytest.mark.parametrize("flag", ["should_log", "should_save", "should_evaluate", "should_training_stop"])
def test_whoever_looks_sees_every_step(flag: str, tmp_path: Any) -> None:
    box = Box(GPU, tmp_path)

    box.do_step(3.0)
    box.do_step(2.0, **{flag: True})

    assert box.losses == [(1, 3.0), (2, 2.0)]
    assert (box.counters.tokens, box.counters.seconds) == (20, 4.0)


def test_the_end_of_an_epoch_sees_every_step(tmp_path: Any) -> None:
    box = Box(GPU, tmp_path)
    box.do_step(3.0)

    box.reporter.on_epoch_end(box.args, TrainerState(global_step=1, max_steps=100), TrainerControl())

    assert box.losses == [(1, 3.0)]


def test_a_loss_that_is_not_a_number_is_reported_for_its_own_step(tmp_path: Any) -> None:
    box = Box(GPU, tmp_path)
    box.do_step(3.0)
    box.do_step(float("nan"))

    with pytest.raises(LossNotFinite, match="at step 2 of 100"):
        box.do_step(2.0)
