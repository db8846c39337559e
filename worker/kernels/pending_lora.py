"""What adapters add to the outputs of linear layers, before it is multiplied by their B matrices.

Shape letters: N tokens, S slots, M linear layers with the same input, R rank, O outputs of all M layers,
C columns (S times M times R).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PendingLora:
    """What the kernel that reads outputs [N, O] adds to them: each token's own product with A, times B.

    The columns C are ordered by slot, then layer, then rank; they may be those of the first slots only, where
    no token has a higher one. Slot 0 is no adapter, and slot s has index s - 1. R is a multiple of 16.
    """

    inner_NC: torch.Tensor
    slots_N: torch.Tensor
    B_SRO: torch.Tensor
    layers: int
