"""What the forward passes of a runner share: prefills and verifying steps.

Shape letters: R all rows, P blocks of a row, N tokens of a pass, V vocabulary, H hidden size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.model import attention
from worker.inference.model.kv_cache import KVCache
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
    """The state of a runner that its passes read and write.

    `block_tables_RP`: the last row is no sequence's; padding is written to its block.
    """

    forward: Forward
    cache: KVCache
    block_tables_RP: torch.Tensor
    slots: LoraSlots
    uses_kernels: bool
    uses_graphs: bool


class CapturedInputs:
    """The inputs of captured passes, which stay where they are: token, row, position and adapter slot."""

    def __init__(self, context: PassContext, max_count: int) -> None:
        self._tables_RP = context.block_tables_RP
        self.values_4N = torch.zeros(4, max_count, dtype=torch.long, device=self._tables_RP.device)

    @property
    def slots_N(self) -> torch.Tensor:
        """The adapter slots."""
        return self.values_4N[3]

    def set(self, inputs_4N: torch.Tensor, size: int) -> None:
        """Copy inputs from the host, followed by padding up to `size`."""
        padding = torch.tensor([[0], [len(self._tables_RP) - 1], [0], [0]])
        padded_4N = torch.cat([inputs_4N, padding.expand(4, size - inputs_4N.shape[1])], 1)
        self.values_4N[:, :size] = on_device(padded_4N, self._tables_RP.device)
