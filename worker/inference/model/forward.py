"""What the forward passes of a runner share: prefills and verifying steps.

Their inputs are tensors [4, N]: token, position, adapter slot and row.
Shape letters: N tokens of a pass, V vocabulary, H hidden size.
"""

from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Protocol

import torch

from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.model import attention
from worker.inference.model.kv_cache import KVCache
from worker.inference.model.rows import Rows
from worker.models.device import on_device


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


def pass_inputs(chunks: Listed[ChunkTokens]) -> torch.Tensor:
    """The inputs [4, N] of a pass over these tokens, on the host."""
    columns = [
        (token_id, position, one.adapter_slot, one.chunk.row)
        for one in chunks
        for position, token_id in enumerate(one.token_ids, start=one.chunk.start)
    ]
    return torch.tensor(columns, dtype=torch.long).T.contiguous()


class CapturedInputs:
    """The inputs of captured passes, which stay where they are."""

    def __init__(self, context: PassContext, max_count: int) -> None:
        self._rows = context.rows
        self.values_4N = torch.zeros(4, max_count, dtype=torch.long, device=self._rows.device)

    @property
    def slots_N(self) -> torch.Tensor:
        """The adapter slots."""
        return self.values_4N[2]

    def set(self, inputs_4N: torch.Tensor, size: int) -> None:
        """Copy inputs from the host, followed by padding up to `size`."""
        padding = torch.tensor([[0], [0], [0], [self._rows.padding_row]])
        padded_4N = torch.cat([inputs_4N, padding.expand(4, size - inputs_4N.shape[1])], 1)
        self.values_4N[:, :size] = on_device(padded_4N, self._rows.device)
