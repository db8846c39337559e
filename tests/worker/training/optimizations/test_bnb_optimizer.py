"""Steps of bitsandbytes' optimizers: ordered by streams, without host synchronization."""

import warnings
from contextlib import contextmanager, nullcontext
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.optim import optimizer
from bitsandbytes.optim.optimizer import Optimizer8bit

from worker.training.optimizations import bnb_optimizer


class FakeStream:
    def __init__(self, name: str, said: list[str]) -> None:
        self.name = name
        self._said = said

    def wait_stream(self, other: "FakeStream") -> None:
        self._said.append(f"{self.name} waits for {other.name}")


class FakeTrainer:
    def __init__(self) -> None:
        self.callbacks: list[Any] = []
        self.add_callback = self.callbacks.append
        self.remove_callback = self.callbacks.remove


def test_steps_are_ordered_by_streams_and_afterwards_by_synchronization_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    @contextmanager
    def running_on(stream: FakeStream) -> Any:
        said.append(f"on the stream of {stream.name}")
        yield

    monkeypatch.setattr(optimizer, "sync_gpu", lambda weight: said.append("the CPU waits"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: FakeStream("the job", said))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: FakeStream("the optimizer", said))
    monkeypatch.setattr(torch.cuda, "stream", running_on)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 34, 1 << 35))
    weights = [torch.nn.Parameter(torch.ones(8)) for _ in range(2)]
    steps = bnb.optim.AdamW32bit(weights, lr=0.1)
    for weight in weights:
        weight.grad = torch.ones(8)
    trainer: Any = FakeTrainer()

    with bnb_optimizer.without_sync(trainer):
        for _ in range(2):
            trainer.callbacks[0].on_pre_optimizer_step()
            steps.step()
            trainer.callbacks[0].on_optimizer_step()

    turn = [
        "the optimizer waits for the job",
        "on the stream of the optimizer",
        "the job waits for the optimizer",
    ]
    assert said == turn * 2
    assert all(weight[0] < 1 for weight in weights)
    steps.step()
    assert said[6:] == ["the CPU waits"] * 2
    assert not trainer.callbacks


@pytest.mark.parametrize(("free_bytes", "asks"), [(1 << 34, 0), (1 << 28, 2)], ids=["free", "scarce"])
def test_pages_are_prefetched_where_they_may_have_left_the_device(
    monkeypatch: pytest.MonkeyPatch, free_bytes: int, asks: int
) -> None:
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(Optimizer8bit, "prefetch_state", lambda self, weight: asked.append(weight))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_bytes, 1 << 35))
    for name in ("current_stream", "default_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: FakeStream("any", []))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    weights = [torch.nn.Parameter(torch.ones(8)) for _ in range(2)]
    steps = bnb.optim.PagedAdamW32bit(weights, lr=0.1)
    for weight in weights:
        weight.grad = torch.ones(8)
    trainer: Any = FakeTrainer()

    with warnings.catch_warnings(), bnb_optimizer.without_sync(trainer):
        warnings.simplefilter("ignore")  # on a CPU nothing is paged
        trainer.callbacks[0].on_pre_optimizer_step()
        steps.step()

    assert len(asked) == asks
