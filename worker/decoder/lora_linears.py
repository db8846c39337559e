"""Linear layers that read one input, with LoRA adapters or without, and their gradients. Knows no autograd.

PEFT computes an adapter with six kernels and saves their intermediate results. Here every sum and every
scaling is the epilogue of a matrix product (`addmm` with alpha and beta).

Where rows of the input have free memory behind them, the products with A are written there: [x | x A^T] times
[W | B]^T is one product; and so for the gradient of an output, with A below the weight (decision 23).
Elsewhere the product with the weight is added to that with B; cuBLAS rounds it first, at least for few
tokens. What may be larger than both, a bias or the residual stream, is added with them in float32 or last:
added before, it would round away what a new adapter contributes.

T: tokens. I: inputs. O: outputs of a layer. R: the rank of a layer; S: the ranks of all layers together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from worker.decoder.adapters import Adapter, InputAdapters, LowRankMatmul, SavedInput
from worker.models.frozen_weights import AdapterColumns, DenseWeight, FourBitWeight

# With more columns, the longer product takes more time than it saves.
_MAX_PADDING = 256
# Rows of 16-bit numbers must begin at multiples of 16 bytes.
_PADDING_MULTIPLE = 8


@dataclass(frozen=True)
class LinearLayer:
    """A frozen linear layer, with an adapter or without."""

    weight: FourBitWeight | DenseWeight
    bias_O: torch.Tensor | None
    adapter: Adapter | None


class LoraLinears:
    """Linear layers with one input, and copies of their adapters in the type of the products."""

    def __init__(
        self, layers: Sequence[LinearLayer], dtype: torch.dtype, low_rank: LowRankMatmul | None = None
    ) -> None:
        """`low_rank`: None for PyTorch's products."""
        self._layers = tuple(layers)
        self._dtype = dtype
        adapters = [layer.adapter for layer in layers if layer.adapter is not None]
        self._adapters = InputAdapters(adapters, dtype, low_rank)
        # The number of each layer's adapter; None: it has none.
        numbers = iter(range(len(adapters)))
        self._numbers = [None if layer.adapter is None else next(numbers) for layer in layers]

    @property
    def has_copies(self) -> bool:
        """Whether `copy_adapters` was called, so that passes can be computed."""
        return self._adapters.has_copies

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self._layers)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every adapter in turn."""
        return self._adapters.parameters

    def copy_adapters(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The copies to make before a pass: (to, from). The backward pass reads them, too."""
        copies = self._adapters.list_copies()
        for layer, number in zip(self._layers, self._numbers, strict=True):
            if layer.adapter is None or number is None or not isinstance(layer.weight, FourBitWeight):
                continue
            if (
                columns := layer.weight.cached_b(self._adapters.firsts[number], self._adapters.rank(number))
            ) is not None:
                copies.append((columns, layer.adapter.b_OR.detach()))
            if (rows := layer.weight.cached_a()) is not None:
                copies.append((rows, layer.adapter.a_RI.detach()))
        return copies

    def input_padding(self) -> int:
        """How many elements should be free behind each row of the next input; 0: none.

        There are none under dropout, since PyTorch draws other masks for strided rows than for PEFT's.
        """
        return 0 if self._is_cached_without("columns") else self._padding()

    def output_grad_padding(self) -> int:
        """How many elements should be free behind each row of the output's gradient, for a layer alone."""
        if len(self._layers) > 1 or self._is_cached_without("rows"):
            return 0
        return self._padding()

    def forward(
        self, x_TI: torch.Tensor, plus_TO: torch.Tensor | None = None, *, padding: int = 0
    ) -> tuple[list[torch.Tensor], SavedInput]:
        """Return the output [T, O] of every layer, and what the gradients need.

        `plus_TO` is added to the output, for a layer alone. `padding`: what `input_padding` said when the
        input was made, so many elements behind each of its rows are free.
        """
        saved = self.save_input(x_TI, padding=padding)
        wide_TW, inners = widen(x_TI, padding), self._adapters.split(saved.inner_TS)
        outputs = []
        for layer, number in zip(self._layers, self._numbers, strict=True):
            plus = layer.bias_O if plus_TO is None else plus_TO
            if number is None:
                y_TO = _product(x_TI, layer.weight.read(self._dtype).t(), plus)
            elif padding:
                y_TO = _product(wide_TW, self._read_with_b(layer, number).t(), plus)
            else:
                y_TO = torch.mm(inners[number], self._adapters.b_OR(number).t())
                y_TO.addmm_(x_TI, layer.weight.read(self._dtype).t())
                y_TO = y_TO if plus is None else y_TO.add_(plus)
            outputs.append(y_TO)
        return outputs, saved

    def save_input(self, x_TI: torch.Tensor, *, padding: int = 0) -> SavedInput:
        """Return what the gradients need of a forward pass, without its outputs."""
        if padding:
            inner_TS = widen(x_TI, padding)[:, x_TI.shape[1] :]
        else:
            inner_TS = x_TI.new_empty(len(x_TI), self._adapters.columns)
        return self._adapters.project_down(x_TI, inner_TS)

    def backward(
        self,
        saved: SavedInput,
        grads_TO: Sequence[torch.Tensor],
        *,
        padding: int = 0,
        needs_x: bool = True,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradient of the input [T, I], and those of `parameters`.

        `padding`: so many elements behind each row of the gradient of a layer alone are free. The input in
        `saved` is freed before its gradient is allocated, so `saved` serves once.
        """
        wide_TW = widen(grads_TO[0], padding)
        grad_inner_TS = wide_TW[:, -padding:] if padding else torch.empty_like(saved.inner_TS)
        of_adapted = [
            grad for grad, number in zip(grads_TO, self._numbers, strict=True) if number is not None
        ]
        grad_bs = self._adapters.grads_through_b(saved, of_adapted, grad_inner_TS)
        grad_as = self._adapters.grads_of_a(saved, grad_inner_TS)
        parameters = [grad for pair in zip(grad_as, grad_bs, strict=True) for grad in pair]
        del saved.x_TI, saved.inner_TS
        if not needs_x:
            return None, parameters
        if padding:
            return torch.mm(wide_TW, self._read_with_a()), parameters
        return self._grad_of_input(saved, grads_TO, grad_inner_TS), parameters

    # Frozen weights as matrices.

    def _read_with_b(self, layer: LinearLayer, number: int) -> torch.Tensor:
        assert isinstance(layer.weight, FourBitWeight)
        adapters = self._adapters
        columns = AdapterColumns(adapters.b_OR(number), adapters.firsts[number], adapters.columns)
        return layer.weight.read_with_b(columns, self._dtype)

    def _read_with_a(self) -> torch.Tensor:
        (layer,) = self._layers
        assert isinstance(layer.weight, FourBitWeight)
        return layer.weight.read_with_a(self._adapters.a_SI, self._dtype)

    def _grad_of_input(
        self, saved: SavedInput, grads_TO: Sequence[torch.Tensor], grad_inner_TS: torch.Tensor
    ) -> torch.Tensor:
        """The gradient of the input [T, I], through the adapters and the weights of all layers."""
        grad_x_TI = self._adapters.grad_of_input(saved, grad_inner_TS)
        for layer, grad_TO in zip(self._layers, grads_TO, strict=True):
            weight_OI = layer.weight.read(self._dtype)
            grad_x_TI = grad_TO @ weight_OI if grad_x_TI is None else grad_x_TI.addmm_(grad_TO, weight_OI)
        assert grad_x_TI is not None
        return grad_x_TI

    # Padding, and weights that are cached dequantized.

    def _padding(self) -> int:
        columns = self._adapters.columns
        fits = 0 < columns <= _MAX_PADDING and columns % _PADDING_MULTIPLE == 0
        can_append = all(layer.weight.can_append_adapter for layer in self._layers if layer.adapter)
        has_dropout = self._adapters.drop_now()
        return columns if fits and can_append and not has_dropout else 0

    def _four_bit(self) -> list[tuple[LinearLayer, FourBitWeight]]:
        return [(layer, layer.weight) for layer in self._layers if isinstance(layer.weight, FourBitWeight)]

    def _is_cached_without(self, part: Literal["rows", "columns"]) -> bool:
        return any(weight.is_cached_without(part) for layer, weight in self._four_bit() if layer.adapter)

    def _cached_padding(self, layer: LinearLayer) -> tuple[int, int]:
        """(rows below, columns to the right) of a cached weight; none where training has dropout."""
        has_dropout = self._adapters.drop_in_training()
        columns = 0 if has_dropout or layer.adapter is None else self._padding()
        return (columns if len(self._layers) == 1 else 0), columns

    @property
    def dequantized_bytes(self) -> int:
        """Bytes that caching all 4-bit weights dequantized takes."""
        sizes = [(weight, *self._cached_padding(layer)) for layer, weight in self._four_bit()]
        elements = [(one.outputs + rows) * (one.inputs + columns) for one, rows, columns in sizes]
        return sum(elements) * self._dtype.itemsize

    def cache_dequantized(self) -> None:
        """Cache all 4-bit weights dequantized, in place of dequantizing them in every pass."""
        for layer, weight in self._four_bit():
            rows, columns = self._cached_padding(layer)
            weight.cache(self._dtype, rows=rows, columns=columns)

    def drop_dequantized(self) -> bool:
        """Free the cached weights. Returns whether there were any."""
        were_cached = [weight.drop_cache() for _layer, weight in self._four_bit()]
        return any(were_cached)


def copy_all(linears: Iterable[LoraLinears]) -> None:
    """Copy the adapters of all these layers, as each of them needs it before a pass."""
    copies = [copy for one in linears for copy in one.copy_adapters()]
    # One launch for all these small matrices. Strided ones (next to cached weights) are copied apart, since
    # one of them would make PyTorch copy all of them one by one.
    for is_whole in (True, False):
        some = [(to, origin) for to, origin in copies if to.is_contiguous() == is_whole]
        if some:
            torch._foreach_copy_([to for to, _from in some], [origin for _to, origin in some])


def widen(matrix_TI: torch.Tensor, padding: int) -> torch.Tensor:
    """The matrix with the free memory behind its rows, [T, I + padding]."""
    if not padding:
        return matrix_TI
    length = matrix_TI.shape[1] + padding
    assert len(matrix_TI) == 1 or matrix_TI.stride() == (length, 1)
    return matrix_TI.as_strided((len(matrix_TI), length), (length, 1))


def _product(left: torch.Tensor, right: torch.Tensor, plus: torch.Tensor | None) -> torch.Tensor:
    return torch.mm(left, right) if plus is None else torch.addmm(plus, left, right)
