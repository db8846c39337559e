"""The devices of this machine, as torch describes them; GPUs are simulated."""

from types import SimpleNamespace

import pytest
import torch

from worker.models.device import find_device, find_devices


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(index: int) -> SimpleNamespace:
        return SimpleNamespace(
            name=f"GPU of place {index}", total_memory=80, major=7 + index, uuid=f"0-{index}"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", describe)


@pytest.mark.usefixtures("two_gpus")
def test_every_gpu_is_found_with_its_uuid() -> None:
    first, second = find_devices()
    assert (first.uuid, first.index, first.supports_bf16) == ("GPU-0-0", 0, False)
    assert (second.uuid, second.torch, second.supports_bf16) == ("GPU-0-1", torch.device("cuda", 1), True)
    assert find_device() == first


def test_without_a_gpu_the_cpu_is_the_one_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    [cpu] = find_devices()
    assert (cpu.kind, cpu.uuid, cpu.torch) == ("cpu", None, torch.device("cpu"))
