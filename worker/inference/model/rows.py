"""The state of all rows on the device, which decode steps read and advance without the host.

Shape letters: R all rows, P blocks of a row, B rows of a step, U rows that are written at once.
"""

import numpy as np
import torch

from worker.inference.batching.block_manager import block_count
from worker.inference.batching.model_batch import Capacity, Move
from worker.inference.batching.sequence import Sequence
from worker.inference.sampling.row_settings import move_row
from worker.models.device import on_device


class Rows:
    """The last token of each row, its position, adapter slot and activity, and its block table.

    A row is active once its prompt is read: decode steps advance it. `padding_row`, of the block tables and
    of `last_2R` (last tokens and positions), is no sequence's: captured passes store the keys of padding in
    its block. What `set` and `set_blocks` were told is on the device after `write`.
    """

    def __init__(
        self, capacity: Capacity, embedding_count: int, device: torch.device, *, uses_kernels: bool
    ) -> None:
        """`embedding_count`: the number of ids that the model can read."""
        max_rows = capacity.max_rows
        self.device = device
        self.padding_row = max_rows
        # In one tensor, so that one copy sets a row.
        state_4R = torch.zeros(4, max_rows + 1, dtype=torch.long, device=device)
        self.last_2R = state_4R[:2]
        self._state_4R = state_4R[:, :max_rows]
        self.tokens_R, self.positions_R, self.adapter_slots_R, self.active_R = self._state_4R
        self.indices_R = torch.arange(max_rows, device=device)
        self.block_tables_RP = torch.zeros(
            max_rows + 1, block_count(capacity.max_length), dtype=torch.int32, device=device
        )
        self._unwritten: dict[int, tuple[int, int, int, bool]] = {}
        self._unwritten_blocks: dict[int, list[int]] = {}
        self._embedding_count = embedding_count
        self._uses_kernels = uses_kernels

    def set(self, sequence: Sequence, read_count: int) -> None:
        """Set a row's state after `read_count` prompt tokens. It is active once all but the last are read."""
        token_ids = sequence.prompt.token_ids
        position = min(read_count, len(token_ids) - 1)
        is_active = position == len(token_ids) - 1 and sequence.prompt.makes_tokens
        self._unwritten[sequence.row] = (token_ids[-1], position, sequence.adapter_slot, is_active)

    def set_blocks(self, row: int, blocks: list[int]) -> None:
        """Set the first blocks of a row."""
        self._unwritten_blocks[row] = blocks

    def write(self) -> None:
        """Write what was set to the device, that of all rows at once (passes/forward.py says why)."""
        if self._unwritten:
            states = np.array([(row, *state) for row, state in self._unwritten.items()], dtype=np.int64)
            states_5U = on_device(torch.from_numpy(states), self.device).T
            self._state_4R[:, states_5U[0]] = states_5U[1:]
            self._unwritten.clear()
        if self._unwritten_blocks:
            width = max(map(len, self._unwritten_blocks.values()))
            tables = np.zeros((len(self._unwritten_blocks), 1 + width), dtype=np.int32)
            for table, (row, blocks) in zip(tables, self._unwritten_blocks.items(), strict=True):
                table[0], table[1 : 1 + len(blocks)] = row, blocks
            tables_UP = on_device(torch.from_numpy(tables), self.device)
            self.block_tables_RP[tables_UP[:, 0], :width] = tables_UP[:, 1:]
            self._unwritten_blocks.clear()

    def advance(self, rows: slice, tokens_B: torch.Tensor) -> None:
        """Make the tokens of active rows the inputs of the next step."""
        active_B = self.active_R[rows]
        # The next step may be launched before the host has seen NO_TOKEN, which is no id.
        if self._uses_kernels:
            from worker.kernels.serving import greedy

            state = (self.tokens_R[rows], self.positions_R[rows])
            greedy.advance(*state, tokens_B, active_B, self._embedding_count)
            return
        ids_B = tokens_B.clamp(0, self._embedding_count - 1)
        self.tokens_R[rows] = torch.where(active_B > 0, ids_B, self.tokens_R[rows])
        self.positions_R[rows] += active_B

    def advance_verified(
        self, rows_B: torch.Tensor, last_tokens_B: torch.Tensor, counts_B: torch.Tensor
    ) -> None:
        """Advance rows by several tokens each, of which these are the last."""
        self.tokens_R[rows_B] = last_tokens_B.clamp(0, self._embedding_count - 1)
        self.positions_R.index_add_(0, rows_B, counts_B)

    def move(self, move: Move) -> None:
        """Move the state of a row to another."""
        move_row(self._unwritten, move.source, move.target)
        move_row(self._unwritten_blocks, move.source, move.target)
        self._state_4R[:, move.target] = self._state_4R[:, move.source]
        self.block_tables_RP[move.target] = self.block_tables_RP[move.source]

    def free(self, row: int) -> None:
        """Reset a row without a sequence: its writes go to block 0, which is never read."""
        self._unwritten.pop(row, None)
        self._unwritten_blocks.pop(row, None)
        self._state_4R[:, row].zero_()
        self.block_tables_RP[row].zero_()
