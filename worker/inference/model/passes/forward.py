"""What the forward passes of a runner share: prefills and verifying steps.

Their inputs are [4, N]: token, position, adapter slot and row. NumPy packs them: every call of PyTorch lets
another thread take the interpreter, which the engine may then wait for.
Shape letters: N tokens of a pass, M tiles of its attention, R all rows, V vocabulary, H hidden size.
"""

from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.batching.sequence import Sequence
from worker.inference.model import attention
from worker.inference.model.kv_cache import KVCache
from worker.inference.model.rows import Rows
from worker.models.device import on_device

Inputs = npt.NDArray[np.int64]

# In the place of a token and its position that the device knows (rows.py).
UNKNOWN = -1

_NO_TILES = np.zeros((0, 4), dtype=np.int64)


class Forward(Protocol):
    """Logits [N, V] of a decode step's tokens [N]; of a prefill the last hidden states [N, H], or with
    `has_logits` its logits.
    """

    def __call__(
        self, ids_N: torch.Tensor, step: attention.Step, *, has_logits: bool = False
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class PassContext:
    """The state of a runner that its passes read and write."""

    forward: Forward
    cache: KVCache
    rows: Rows
    slots: LoraSlots
    uses_kernels: bool
    uses_graphs: bool


@dataclass(frozen=True)
class ChunkTokens:
    """The tokens of a chunk, and the adapter slot of its row."""

    chunk: attention.Chunk
    token_ids: Listed[int]
    adapter_slot: int

    @classmethod
    def of_last(cls, sequence: Sequence) -> "ChunkTokens":
        """The last token of a row whose prompt is read, which the device alone may know."""
        return cls(attention.Chunk(sequence.row, UNKNOWN, 1), [UNKNOWN], sequence.adapter_slot)


def pass_inputs(chunks: Listed[ChunkTokens]) -> Inputs:
    """The inputs [4, N] of a pass over these tokens."""
    columns = [
        (token_id, position, one.adapter_slot, one.chunk.row)
        for one in chunks
        for position, token_id in enumerate(one.token_ids, start=one.chunk.start)
    ]
    return np.array(columns, dtype=np.int64).T


def complete(inputs_4N: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Inputs with the last tokens of rows, and their positions, in the place of UNKNOWN."""
    last_2N = rows.last_2R[:, inputs_4N[3]]
    return torch.cat([torch.where(inputs_4N[:2] == UNKNOWN, last_2N, inputs_4N[:2]), inputs_4N[2:]])


def complete_tiles(tiles_M4: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Tiles of attention with the positions of rows in the place of UNKNOWN."""
    rows_M, firsts_M, positions_M, counts_M = tiles_M4.T
    last_M = rows.last_2R[1, rows_M].to(torch.int32)
    positions_M = torch.where(positions_M == UNKNOWN, last_M, positions_M)
    return torch.stack([rows_M, firsts_M, positions_M, counts_M], 1)


class CapturedInputs:
    """The inputs of captured passes, and the tiles of their attention, which stay where they are."""

    def __init__(self, context: PassContext, max_count: int, max_tiles: int = 0) -> None:
        self._rows = context.rows
        self._staged = torch.zeros(4 * (max_count + max_tiles), dtype=torch.long, device=self._rows.device)
        self.slots_N = torch.zeros(max_count, dtype=torch.long, device=self._rows.device)

    def set(self, inputs_4N: Inputs, size: int, tiles_M4: Inputs = _NO_TILES) -> None:
        """Copy inputs from the host, followed by padding up to `size`, and tiles: all in one copy."""
        padded_4N = np.zeros((4, size), dtype=np.int64)
        padded_4N[3] = self._rows.padding_row
        padded_4N[:, : inputs_4N.shape[1]] = inputs_4N
        staged = np.concatenate([padded_4N.ravel(), tiles_M4.ravel()])
        self._staged[: len(staged)].copy_(on_device(torch.from_numpy(staged), self._rows.device))

    def read(self, size: int, tile_count: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [4, `size`] and tiles [`tile_count`, 4], in a captured pass. Sets `slots_N`, too.

        Kernels read the slots before those ahead have ended: the embedding comes between, which waits.
        """
        staged = self._staged[: 4 * (size + tile_count)]
        inputs_4N = complete(staged[: 4 * size].view(4, size), self._rows)
        self.slots_N[:size] = inputs_4N[2]
        return inputs_4N, complete_tiles(staged[4 * size :].view(tile_count, 4).to(torch.int32), self._rows)
