"""CUDA graphs of a forward pass at a few sizes: rows of a decode step, or tokens of a prompt.

What lies between two sizes runs in the larger one, whose other rows are padding. A size has graphs for
several numbers of adapter slots, since all slots of a graph are computed for every token. A model that can't
be captured runs without graphs.
"""

import logging
from collections import Counter
from collections.abc import Callable

import torch

from worker.models.cuda_graphs import CapturedGraph, GraphPool

_log = logging.getLogger(__name__)

# Steps that run with more slots than they need before their number of slots is captured. A slot that is
# computed in vain takes about half a percent of a step, a capture several steps.
_STEPS_BEFORE_CAPTURE = 32

Forward = Callable[[int], torch.Tensor]


class StepGraphs:
    """Captures a forward pass at several sizes. Its inputs must stay where they are in memory.

    A graph is captured ahead (`capture_all`), or while the engine serves: at once where the size has none
    for as many slots, and else once `_STEPS_BEFORE_CAPTURE` steps have run with more slots than they need.
    So a forward pass waits for one capture at most, and numbers of slots that come and go cause none.
    """

    def __init__(
        self, forward: Forward, sizes: list[int], new_pool: Callable[[], GraphPool] = GraphPool
    ) -> None:
        """`sizes` ascend. `forward` takes one of them, or any larger number."""
        self._forward = forward
        self._sizes = sizes
        # By size and number of slots.
        self._captured: dict[tuple[int, int], CapturedGraph[torch.Tensor]] = {}
        self._missed: Counter[tuple[int, int]] = Counter()
        self._new_pool = new_pool
        self._pool = new_pool()
        self._is_off = False

    def size(self, needed: int) -> int | None:
        """The size to run with; None: too large for the graphs, or the model can't be captured."""
        return None if self._is_off else next((size for size in self._sizes if size >= needed), None)

    def run(self, needed: int, slot_count: int) -> torch.Tensor:
        """Return the output of the forward pass at `size(needed)`, or at `needed` where that is None.

        `slot_count`: the adapter slots that the forward pass computes as it is set now.
        """
        size = self.size(needed)
        graph = self._graph(size, slot_count) if size is not None else None
        if graph is not None:
            return graph.replay()
        # Where the capture has failed, the inputs are those of the size.
        return self._forward(needed if size is None else size)

    def capture_all(self, slot_count: int) -> None:
        """Capture every size, the largest first: the smaller ones then use its memory."""
        for size in reversed(self._sizes):
            if not self._is_off and (size, slot_count) not in self._captured:
                self._capture(size, slot_count)

    def discard(self) -> None:
        """Drop all graphs; they are captured anew when they are needed."""
        torch.cuda.synchronize()
        self._captured.clear()
        self._missed.clear()
        # PyTorch 2.11 can't capture into the memory of a pool whose graphs are all gone.
        self._pool = self._new_pool()

    def _graph(self, size: int, slot_count: int) -> CapturedGraph[torch.Tensor] | None:
        """A graph with so many slots or more; None where the model can't be captured."""
        key = (size, slot_count)
        if key in self._captured:
            return self._captured[key]
        larger = min(
            (slots for one, slots in self._captured if one == size and slots > slot_count), default=None
        )
        self._missed[key] += 1
        if larger is not None and self._missed[key] <= _STEPS_BEFORE_CAPTURE:
            return self._captured[size, larger]
        try:
            self._capture(size, slot_count)
        except torch.OutOfMemoryError:
            if larger is None:
                raise
            _log.warning("Memory is short for a graph of %d rows or tokens with %d adapter slots", *key)
            self._missed[key] = 0
            return self._captured[size, larger]
        return self._captured.get(key)

    def _capture(self, size: int, slot_count: int) -> None:
        try:
            # The first run compiles kernels and initialises libraries, which can't be captured.
            self._forward(size)
            self._captured[size, slot_count] = self._pool.capture(lambda: self._forward(size))
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
