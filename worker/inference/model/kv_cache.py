"""Keys and values in pages: per layer `[pages, tokens of a page, H_kv, D]`. Knows nothing of who owns a page.

Shape letters: P pages, S tokens of a page, G heads of keys and values, N tokens of a step, D dimension.
"""

from dataclasses import dataclass

import numpy as np
import torch

from worker.inference.batching.block_manager import PAGE_TOKENS


@dataclass(frozen=True)
class Layer:
    """One layer's cache."""

    keys_PSGD: torch.Tensor
    values_PSGD: torch.Tensor


class KVCache:
    """All layers. A layer takes its shape from the first keys and values that it is given."""

    def __init__(self, page_count: int) -> None:
        self.page_count = page_count
        self._layers: dict[int, Layer] = {}

    @property
    def bytes_per_token(self) -> int:
        """Over all layers that were used."""
        tensors = [t for layer in self._layers.values() for t in (layer.keys_PSGD, layer.values_PSGD)]
        return sum(tensor[0, 0].numel() * tensor.element_size() for tensor in tensors)

    def layer(self, index: int, keys_BGND: torch.Tensor, values_BGND: torch.Tensor) -> Layer:
        """One layer's cache, made when these keys and values are its first."""
        if index not in self._layers:
            self._layers[index] = Layer(self._new(keys_BGND), self._new(values_BGND))
        return self._layers[index]

    def clear(self, pages: list[int]) -> None:
        """Zero these pages: a masked value still is multiplied by zero, so it must not be infinite."""
        for layer in self._layers.values():
            layer.keys_PSGD[pages] = 0
            layer.values_PSGD[pages] = 0

    def _new(self, states_BGND: torch.Tensor) -> torch.Tensor:
        _, heads, _, dimension = states_BGND.shape
        shape = (self.page_count, PAGE_TOKENS, heads, dimension)
        if states_BGND.is_cuda:
            return states_BGND.new_zeros(shape)
        # NumPy's zeros are the system's: memory is taken page by page, once something is written there.
        count = int(np.prod(shape)) * states_BGND.element_size()
        return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(states_BGND.dtype).view(shape)
