"""A 4-bit linear layer without an adapter, dequantized by the same kernel as those with one, or cached."""

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch.nn import functional

from worker.models.frozen_weights import Dequantizers, FourBitWeight


class FrozenLinear:
    """Computes the layer in place of its own `forward`."""

    def __init__(self, layer: Linear4bit, dtype: torch.dtype, dequantizers: Dequantizers) -> None:
        self.weight = FourBitWeight(layer, dequantizers)
        self._layer = layer
        self._dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output [..., O] for an input [..., I]."""
        if not (x.dtype is self._layer.compute_dtype is self._dtype):
            output: torch.Tensor = type(self._layer).forward(self._layer, x)
            return output
        output = _Frozen.apply(x, self.weight, self._layer.bias)
        return output


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: FourBitWeight, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.weight = weight
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(
                x, weight.read(x.dtype), None if bias_O is None else bias_O.detach().to(x.dtype)
            )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return torch.matmul(grad, ctx.weight.read(grad.dtype)), None, None
