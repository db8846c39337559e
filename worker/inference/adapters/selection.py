"""Which adapter slot each token of a step has, and how many slots the step computes.

Shape letters: N tokens, S slots, C columns.
"""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Selection:
    """The adapter slot of each token. `used`: the slots in use, ascending, without 0.

    `slot_count`: the slots 1 to this number are computed for every token on a GPU.
    """

    slots_N: torch.Tensor
    used: list[int]
    slot_count: int
    is_mixed: bool
    _masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    def column_mask(self, first_slot: int, last_slot: int, columns_per_slot: int) -> torch.Tensor:
        """Boolean [N, C] over the columns of these slots: whether a column is of the token's own slot."""
        key = (first_slot, last_slot, columns_per_slot)
        if key not in self._masks:
            self._masks[key] = column_mask(self.slots_N, first_slot, last_slot, columns_per_slot)
        return self._masks[key]


def column_mask(
    slots_N: torch.Tensor, first_slot: int, last_slot: int, columns_per_slot: int
) -> torch.Tensor:
    """Boolean [N, C] over the columns of these slots: whether a column is of the slot in `slots_N`."""
    slots_S = torch.arange(first_slot, last_slot + 1, device=slots_N.device)
    columns = len(slots_S) * columns_per_slot
    slots_C = slots_S.repeat_interleave(columns_per_slot, output_size=columns)
    return slots_N[:, None] == slots_C
