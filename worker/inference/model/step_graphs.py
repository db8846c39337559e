"""CUDA graphs of a forward pass at a few sizes: rows of a decode step, or tokens of a prompt.

What lies between two sizes runs in the larger one, whose other rows are padding. A model that can't be
captured runs without graphs.
"""

import logging
from collections.abc import Callable

import torch

from worker.models.cuda_graphs import CapturedGraph, GraphPool

_log = logging.getLogger(__name__)

Forward = Callable[[int], torch.Tensor]


class StepGraphs:
    """Captures a forward pass at several sizes. Its inputs must stay where they are in memory."""

    def __init__(self, forward: Forward, sizes: list[int]) -> None:
        """`sizes` ascend. `forward` takes one of them, or any larger number."""
        self._forward = forward
        self._sizes = sizes
        self._captured: dict[tuple[int, bool], CapturedGraph[torch.Tensor]] = {}
        self._pool = GraphPool()
        self._is_off = False

    def size(self, needed: int) -> int | None:
        """The size to run with; None: too large for the graphs, or the model can't be captured."""
        return None if self._is_off else next((size for size in self._sizes if size >= needed), None)

    def run(self, needed: int, has_adapters: bool) -> torch.Tensor:
        """Return the output of the forward pass at `needed`, or at the next larger size."""
        size = self.size(needed)
        if size is not None and (size, has_adapters) not in self._captured:
            self._capture(size, has_adapters)
            size = self.size(needed)
        if size is None:
            return self._forward(needed)
        return self._captured[size, has_adapters].replay()

    def capture_all(self, has_adapters: bool) -> None:
        """Capture every size, the largest first: the smaller ones then use its memory."""
        for size in reversed(self._sizes):
            if not self._is_off and (size, has_adapters) not in self._captured:
                self._capture(size, has_adapters)

    def discard(self) -> None:
        """Drop all graphs; they are captured anew when they are needed."""
        torch.cuda.synchronize()
        self._captured.clear()
        # PyTorch 2.11 can't capture into the memory of a pool whose graphs are all gone.
        self._pool = GraphPool()

    def _capture(self, size: int, has_adapters: bool) -> None:
        try:
            # The first run compiles kernels and initialises libraries, which can't be captured.
            self._forward(size)
            torch.cuda.synchronize()
            self._captured[size, has_adapters] = self._pool.capture(lambda: self._forward(size))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _log.warning(
                "The model's steps can't be captured as CUDA graphs, so they are launched piece by piece: %s",
                error,
            )
            self._is_off = True


def batch_sizes(max_rows: int) -> list[int]:
    """Sizes of decode steps to capture. They are few, since each is captured on its own."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, *range(192, max_rows, 64)]
    return [*(size for size in sizes if size < max_rows), max_rows]
