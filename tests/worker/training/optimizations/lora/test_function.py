"""The LoRA function against float32: outputs, gradients, and what is computed again."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.worker.training.optimizations.conftest import TOLERANCE, relative_error
from worker.kernels import low_rank_matmul
from worker.training.optimizations.lora import padded_columns
from worker.training.optimizations.lora.function import lora_linears
from worker.training.optimizations.lora.layers import Adapters, LoraLinearSpec


@dataclass
class DenseMatrix:
    """A weight that counts its reads."""

    weight_OI: torch.Tensor
    reads: int = 0

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        self.reads += 1
        return self.weight_OI.to(dtype)


class PaddedInput(torch.autograd.Function):
    """The input, with padding columns."""

    @staticmethod
    def forward(ctx: Any, x_TI: torch.Tensor, free: int) -> torch.Tensor:
        tokens, inputs = x_TI.shape
        return x_TI.new_empty(tokens, inputs + free)[:, :inputs].copy_(x_TI)

    @staticmethod
    def backward(ctx: Any, grad_TI: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad_TI, None


class PaddedGradient(torch.autograd.Function):
    """The output, whose gradient has padding columns."""

    @staticmethod
    def forward(ctx: Any, y_TO: torch.Tensor, free: int) -> torch.Tensor:
        ctx.free = free
        return y_TO.clone()

    @staticmethod
    def backward(ctx: Any, grad_TO: torch.Tensor) -> tuple[torch.Tensor, None]:
        tokens, outputs = grad_TO.shape
        padded_TO = grad_TO.new_empty(tokens, outputs + ctx.free)[:, :outputs].copy_(grad_TO)
        return padded_columns.mark_padding(padded_TO, ctx.free), None


@pytest.mark.parametrize("has_padding", [False, True], ids=["added", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "ranks"),
    [
        (7, 24, [16], [4]),
        (1, 8, [8, 12], [1, 3]),
        (33, 64, [64, 16, 16], [8, 8, 8]),
        (5, 16, [48, 48], [64, 64]),
    ],
)
def test_it_computes_what_float32_says(
    tokens: int,
    inputs: int,
    outputs: list[int],
    ranks: list[int],
    dropout: float,
    dtype: torch.dtype,
    has_padding: bool,
) -> None:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) / shape[-1] ** 0.5

    x_TI = draw(tokens, inputs).to(dtype)
    weights = [draw(width, inputs).to(dtype) for width in outputs]
    biases = [draw(width).to(dtype) if place % 2 else None for place, width in enumerate(outputs)]
    matrices = [m for r, o in zip(ranks, outputs, strict=True) for m in (draw(r, inputs), draw(o, r))]
    weighing = [draw(tokens, width).to(dtype) for width in outputs]
    layers = [
        LoraLinearSpec(DenseMatrix(w), b, 0.25 + i, dropout)
        for i, (w, b) in enumerate(zip(weights, biases, strict=True))
    ]

    def fast(x: torch.Tensor, params: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        copies = [m.detach().to(dtype) for m in params]
        adapters = Adapters(torch.cat(copies[0::2]), tuple(copies[1::2]))
        if not has_padding:
            return lora_linears(x, layers, adapters, params)
        columns = torch.block_diag(*copies[1::2]).split(outputs)
        appended = [
            dataclasses.replace(
                layer,
                read_with_b=torch.cat([weight, b], dim=1).to,
                read_with_a=torch.cat([weight, adapters.a_SI]).to,
            )
            for layer, weight, b in zip(layers, weights, columns, strict=True)
        ]
        total = sum(ranks)
        # The interpreter takes bfloat16 for integers.
        low_rank = low_rank_matmul if dtype is torch.float32 else None
        padded = padded_columns.mark_padding(PaddedInput.apply(x, total), total)
        ys = lora_linears(padded, appended, adapters, params, low_rank=low_rank)
        return [PaddedGradient.apply(y, total) for y in ys]

    def reference(x: torch.Tensor, params: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        found = []
        for layer, a_RI, b_OR in zip(layers, params[0::2], params[1::2], strict=True):
            weight_OI, bias_O = layer.weight.read(torch.float32), layer.bias_O
            kept = nn.functional.dropout(x, dropout) if dropout else x
            plain = nn.functional.linear(x, weight_OI, None if bias_O is None else bias_O.float())
            found.append(plain + kept @ a_RI.t() @ b_OR.t() * layer.scaling)
        return found

    results = []
    for compute, x in ((fast, x_TI), (reference, x_TI.float())):
        x = x.clone().requires_grad_()
        params = [matrix.clone().requires_grad_() for matrix in matrices]
        torch.manual_seed(5)
        ys = compute(x, params)
        sum((y.float() * w.float()).sum() for y, w in zip(ys, weighing, strict=True)).backward()  # type: ignore
        results.append([*ys, x.grad, *(param.grad for param in params)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) <= TOLERANCE[dtype]


def test_a_last_output_that_is_not_saved_is_not_computed_again() -> None:
    first, last = DenseMatrix(torch.randn(6, 4)), DenseMatrix(torch.randn(4, 6))
    shapes = [(2, 4), (6, 2), (2, 6), (4, 2)]
    parameters = [torch.randn(shape, requires_grad=True) for shape in shapes]
    adapters = [
        Adapters(a_RI.detach(), (b_OR.detach(),))
        for a_RI, b_OR in zip(parameters[::2], parameters[1::2], strict=True)
    ]
    x_TI = torch.randn(3, 4, requires_grad=True)

    def compute(x: torch.Tensor) -> torch.Tensor:
        (y,) = lora_linears(x, [LoraLinearSpec(first, None, 0.5, 0.0)], adapters[0], parameters[:2])
        (z,) = lora_linears(y.sin(), [LoraLinearSpec(last, None, 0.5, 0.0)], adapters[1], parameters[2:])
        return x + z

    expected = torch.autograd.grad(compute(x_TI).sum(), [x_TI, *parameters])
    first.reads = last.reads = 0
    output = checkpoint(compute, x_TI, use_reentrant=False)
    found = torch.autograd.grad(output.sum(), [x_TI, *parameters])

    assert (first.reads, last.reads) == (3, 2)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


class NoGradient(torch.autograd.Function):
    """Hands its input on, and no gradient back."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor) -> torch.Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:
        return None


def test_where_no_output_has_a_gradient_nothing_has() -> None:
    x_TI = torch.randn(3, 4, requires_grad=True)
    parameters = [torch.randn(shape, requires_grad=True) for shape in ((2, 4), (6, 2))]
    adapters = Adapters(parameters[0].detach(), (parameters[1].detach(),))
    (y,) = lora_linears(
        x_TI, [LoraLinearSpec(DenseMatrix(torch.randn(6, 4)), None, 0.5, 0.0)], adapters, parameters
    )

    (NoGradient.apply(y).sum() + x_TI.sum()).backward()

    assert torch.equal(x_TI.grad, torch.ones(3, 4))
    assert [parameter.grad for parameter in parameters] == [None, None]


@pytest.mark.parametrize("plus", ["stream", "bias"])
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
def test_what_a_new_adapter_adds_is_not_rounded_away(size: float, plus: str) -> None:
    """By how much outputs in bfloat16 change with the adapter, regressed on the change in float32.

    The stream and the bias are much larger than the product with the weight, and that than the adapter's, as
    in the first steps of a job.
    """
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int, std: float) -> torch.Tensor:
        return (torch.randn(shape, generator=random) * std).bfloat16()

    tokens, inputs, outputs, rank = 300, 64, 256, 4
    x_TI, weight_OI = draw(tokens, inputs, std=1), draw(outputs, inputs, std=0.5 / inputs**0.5)
    a_RI, b_OR = draw(rank, inputs, std=inputs**-0.5), draw(outputs, rank, std=size / rank**0.5)
    stream_TO = draw(tokens, outputs, std=2) if plus == "stream" else None
    bias_O = draw(outputs, std=2) if plus == "bias" else None
    layer = LoraLinearSpec(DenseMatrix(weight_OI), bias_O, 1.0, 0.0)

    def compute(b_OR: torch.Tensor) -> torch.Tensor:
        (y_TO,) = lora_linears(x_TI, [layer], Adapters(a_RI, (b_OR,)), [a_RI, b_OR], stream_TO)
        return y_TO.float()

    change_TO = x_TI.float() @ a_RI.float().t() @ b_OR.float().t()
    found_TO = compute(b_OR) - compute(torch.zeros_like(b_OR))
    share = float((found_TO * change_TO).sum() / change_TO.square().sum())
    assert share == pytest.approx(1, abs=0.15)
