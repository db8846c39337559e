"""The sampling settings of all rows on the device.

Shape letters: R all rows, B rows of a step or positions of a verifying one, U rows that are written at once.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from app.core.engine.sampling import Sampling
from worker.models.device import on_device

Value = TypeVar("Value")


@dataclass
class StepSettings:
    """The settings of some rows, and how many tokens each has drawn. A temperature of 0 is greedy."""

    temperature_B: torch.Tensor
    top_p_B: torch.Tensor
    min_p_B: torch.Tensor
    top_k_B: torch.Tensor
    seed_B: torch.Tensor
    made_count_B: torch.Tensor


class RowSettings:
    """Settings by row. What `set` was told is on the device after `write`: one copy for all rows."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._device = device
        self._floats_3R = torch.zeros(3, max_rows, device=device)
        self._counts_3R = torch.zeros(3, max_rows, dtype=torch.long, device=device)
        self._unwritten: dict[int, tuple[Sampling, int]] = {}

    def set(self, row: int, sampling: Sampling, seed: int) -> None:
        """Set a row that has drawn no tokens yet."""
        self._unwritten[row] = (sampling, seed)

    def write(self) -> None:
        """Write what was set to the device."""
        if not self._unwritten:
            return
        settings = list(self._unwritten.values())
        floats = [(0 if s.is_greedy else s.temperature, s.top_p, s.min_p) for s, _ in settings]
        counts = [(row, s.top_k, seed, 0) for row, (s, seed) in self._unwritten.items()]
        floats_U3 = np.array(floats, dtype=np.float32).view(np.int32)
        packed_U7 = np.concatenate([np.array(counts, dtype=np.int64), floats_U3], 1)
        packed_7U = on_device(torch.from_numpy(packed_U7), self._device).T
        rows_U = packed_7U[0]
        self._counts_3R[:, rows_U] = packed_7U[1:4]
        self._floats_3R[:, rows_U] = packed_7U[4:].to(torch.int32).view(torch.float32)
        self._unwritten.clear()

    def move(self, source: int, target: int) -> None:
        """Move the settings of row `source` to row `target`."""
        move_row(self._unwritten, source, target)
        self._floats_3R[:, target] = self._floats_3R[:, source]
        self._counts_3R[:, target] = self._counts_3R[:, source]

    def at(self, rows: slice | torch.Tensor) -> StepSettings:
        """The settings of these rows: views of them where they are a slice."""
        return StepSettings(*self._floats_3R[:, rows], *self._counts_3R[:, rows])

    def add_drawn(self, rows_B: torch.Tensor, counts_B: torch.Tensor) -> None:
        """Count the tokens that rows have drawn."""
        self._counts_3R[2].index_add_(0, rows_B, counts_B)


def move_row(unwritten: dict[int, Value], source: int, target: int) -> None:
    """Move what is not written yet of row `source` to row `target`, in the place of what was there."""
    unwritten.pop(target, None)
    if source in unwritten:
        unwritten[target] = unwritten.pop(source)
