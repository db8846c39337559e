"""CUDA graphs of a forward pass: what one step launches is recorded once and replayed as a whole.

A graph is of one size (rows of a decode step, tokens of a prompt); what lies between two sizes runs in the
larger one, and the rest of it computes for nobody. A model that can't be recorded runs without.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

_log = logging.getLogger(__name__)

Forward = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    output: torch.Tensor


class StepGraphs:
    """Records a forward pass of several sizes. Its inputs must stay where they are in memory."""

    def __init__(self, forward: Forward, sizes: list[int]) -> None:
        self._forward = forward
        self._sizes = sizes
        self._recorded: dict[tuple[int, bool], _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._is_off = False

    def size(self, needed: int) -> int | None:
        """The size to run with; None: too large to be recorded, or nothing can be."""
        return None if self._is_off else next((size for size in self._sizes if size >= needed), None)

    def run(self, needed: int, has_adapters: bool) -> torch.Tensor:
        """What the forward pass answers, of this size or of the next larger one."""
        size = self.size(needed)
        if size is not None and (size, has_adapters) not in self._recorded:
            self._record(size, has_adapters)
            size = self.size(needed)
        if size is None:
            return self._forward(needed)
        recorded = self._recorded[size, has_adapters]
        recorded.graph.replay()
        return recorded.output

    def record_all(self, has_adapters: bool) -> None:
        """Record every size, the largest first: the smaller ones then use its memory."""
        for size in reversed(self._sizes):
            if not self._is_off and (size, has_adapters) not in self._recorded:
                self._record(size, has_adapters)

    def forget(self) -> None:
        """What was recorded is of no use any more."""
        torch.cuda.synchronize()
        self._recorded.clear()

    def _record(self, size: int, has_adapters: bool) -> None:
        try:
            # The first run compiles kernels and sets libraries up, which can't be recorded.
            self._forward(size)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Threads that read adapters meanwhile are none of the recording's business.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = self._forward(size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _log.warning(
                "The model's steps can't be recorded, so they are launched piece by piece: %s", error
            )
            self._is_off = True
            return
        self._recorded[size, has_adapters] = _Recorded(graph, output)


def batch_sizes(max_rows: int) -> list[int]:
    """Few, since each is recorded on its own."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, *range(192, max_rows, 64)]
    return [*(size for size in sizes if size < max_rows), max_rows]
