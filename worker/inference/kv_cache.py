"""Keys and values of every running sequence: per layer `[rows, length, H_kv, D]`, one row a sequence.

It starts small and grows with what runs, within a budget of rows times length. Knows nothing of attention.
Shape letters: R rows, L length, H heads of keys and values, D their dimension.
"""

from dataclasses import dataclass

import torch

_FIRST_ROWS = 4
_FIRST_LENGTH = 256


@dataclass
class Layer:
    """One layer's cache."""

    keys_RLHD: torch.Tensor
    values_RLHD: torch.Tensor


class KVCache:
    """All layers. A layer takes its shape from the first keys and values that it is given."""

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._rows = 0
        self._length = 0
        self._layers: dict[int, Layer] = {}

    @property
    def bytes_per_token(self) -> int:
        """Of one row, over all layers that were used."""
        tensors = [t for layer in self._layers.values() for t in (layer.keys_RLHD, layer.values_RLHD)]
        return sum(tensor[0, 0].numel() * tensor.element_size() for tensor in tensors)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of this length, which is what runs now; the rest may be given up."""
        if rows <= self._rows and length <= self._length:
            return
        new_rows, new_length = self._grown(rows, length)
        for layer in self._layers.values():
            layer.keys_RLHD = _resized(layer.keys_RLHD, new_rows, new_length)
            layer.values_RLHD = _resized(layer.values_RLHD, new_rows, new_length)
        self._rows, self._length = new_rows, new_length

    def layer(self, index: int, keys_BHTD: torch.Tensor, values_BHTD: torch.Tensor) -> Layer:
        """One layer's cache, made when these keys and values are its first."""
        if index not in self._layers:
            self._layers[index] = Layer(self._new(keys_BHTD), self._new(values_BHTD))
        return self._layers[index]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row into another."""
        if source >= self._rows:
            return  # the row is so new that nothing was written yet
        for layer in self._layers.values():
            for tensor_RLHD in (layer.keys_RLHD, layer.values_RLHD):
                tensor_RLHD[target, :length] = tensor_RLHD[source, :length]

    def _grown(self, rows: int, length: int) -> tuple[int, int]:
        """Doubled sizes, so that growing is rare, where the budget has room for them."""
        doubled_rows = max(self._rows, _power_of_two(rows, _FIRST_ROWS))
        doubled_length = max(self._length, _power_of_two(length, _FIRST_LENGTH))
        choices = [(doubled_rows, doubled_length), (rows, doubled_length), (doubled_rows, length)]
        fitting = (choice for choice in choices if choice[0] * choice[1] <= self._max_tokens)
        return next(fitting, (rows, length))

    def _new(self, states_BHTD: torch.Tensor) -> torch.Tensor:
        _, heads, _, dimension = states_BHTD.shape
        # Zeros: a masked value still is multiplied by zero, which makes NaN of whatever memory held.
        return states_BHTD.new_zeros(self._rows, self._length, heads, dimension)


def _resized(tensor_RLHD: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    resized_RLHD = tensor_RLHD.new_zeros(rows, length, *tensor_RLHD.shape[2:])
    kept = (slice(min(rows, tensor_RLHD.shape[0])), slice(min(length, tensor_RLHD.shape[1])))
    resized_RLHD[kept] = tensor_RLHD[kept]
    return resized_RLHD


def _power_of_two(needed: int, least: int) -> int:
    return max(least, 1 << (needed - 1).bit_length())
