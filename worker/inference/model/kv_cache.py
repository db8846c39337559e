"""The keys and values of all layers, in blocks. Does not know which sequence uses which block.

Shape letters: P blocks, S tokens of a block, G key/value heads, N tokens of a step, D head dimension.
"""

from dataclasses import dataclass

import numpy as np
import torch

from worker.inference.batching.block_manager import BLOCK_TOKENS


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer."""

    keys_PSGD: torch.Tensor
    values_PSGD: torch.Tensor


class KVCache:
    """The caches of all layers. The first keys and values of a layer determine its heads and dimension."""

    def __init__(self, block_count: int) -> None:
        self.block_count = block_count
        self._layers: dict[int, LayerCache] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values per token, over all layers used so far."""
        tensors = [t for layer in self._layers.values() for t in (layer.keys_PSGD, layer.values_PSGD)]
        return sum(tensor[0, 0].numel() * tensor.element_size() for tensor in tensors)

    def layer(self, index: int, keys_GND: torch.Tensor, values_GND: torch.Tensor) -> LayerCache:
        """Returns the layer's cache, allocated at its first use with the shapes of these keys and values."""
        if index not in self._layers:
            self._layers[index] = LayerCache(self._new(keys_GND), self._new(values_GND))
        return self._layers[index]

    def clear(self, blocks: list[int]) -> None:
        """Zero these blocks: a masked value is still multiplied by zero, so it must be finite."""
        for layer in self._layers.values():
            layer.keys_PSGD[blocks] = 0
            layer.values_PSGD[blocks] = 0

    def _new(self, states_GND: torch.Tensor) -> torch.Tensor:
        heads, _, dimension = states_GND.shape
        shape = (self.block_count, BLOCK_TOKENS, heads, dimension)
        if states_GND.is_cuda:
            return states_GND.new_zeros(shape)
        # NumPy's zeros are lazily allocated: the system takes memory page by page, at the first write.
        count = int(np.prod(shape)) * states_GND.element_size()
        return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(states_GND.dtype).view(shape)
