"""Linear layers with adapters, apart from a decoder."""

import weakref

import torch
from torch import nn

from worker.decoder.adapters import Adapter
from worker.decoder.lora_linears import LinearLayer, LoraLinears
from worker.models.frozen_weights import DenseWeight


class WatchedWeight(DenseWeight):
    """Notes at each read whether some tensors are still in memory."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.watched: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[bool] = []

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        self.alive = [one() is not None for one in self.watched]
        return super().read(dtype)


def test_the_input_is_freed_before_its_gradient_is_allocated() -> None:
    weight = WatchedWeight(nn.Linear(8, 6))
    a_RI, b_OR = (nn.Parameter(torch.randn(size)) for size in ((2, 8), (6, 2)))
    adapter = Adapter(a_RI, b_OR, 1.0, nn.Identity())
    linears = LoraLinears([LinearLayer(weight, None, adapter)], torch.float32)
    for to, origin in linears.copy_adapters():
        to.copy_(origin)
    saved = linears.save_input(torch.randn(5, 8))
    assert saved.x_TI is not None
    weight.watched = [weakref.ref(saved.x_TI), weakref.ref(saved.inner_TS)]

    linears.backward(saved, [torch.randn(5, 6)])

    assert weight.alive == [False, False]
