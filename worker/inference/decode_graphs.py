"""CUDA graphs of the decode step: what one step launches is recorded once and replayed as a whole.

A graph is of one batch size; a batch that lies between two sizes runs in the larger one, and rows without a
sequence compute for nobody. A model that can't be recorded runs without.
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
    logits_BV: torch.Tensor


class DecodeGraphs:
    """Records a forward pass over the first `batch` rows. Its inputs must stay where they are in memory."""

    def __init__(self, forward: Forward, max_rows: int) -> None:
        self._forward = forward
        self._sizes = batch_sizes(max_rows)
        self._recorded: dict[tuple[int, object], _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.is_off = False

    def run(self, batch: int, variant: object) -> torch.Tensor:
        """Logits of the first `batch` rows. `variant`: what else a recording depends on."""
        size = next(size for size in self._sizes if size >= batch)
        if not self.is_off and (size, variant) not in self._recorded:
            self._record(size, variant)
        if self.is_off:
            return self._forward(batch)
        recorded = self._recorded[size, variant]
        recorded.graph.replay()
        return recorded.logits_BV[:batch]

    def record_all(self, variant: object) -> None:
        """Record every size, the largest first: the smaller ones then use its memory."""
        for size in reversed(self._sizes):
            if not self.is_off and (size, variant) not in self._recorded:
                self._record(size, variant)

    def forget(self) -> None:
        """What was recorded is of no use any more."""
        torch.cuda.synchronize()
        self._recorded.clear()

    def _record(self, size: int, variant: object) -> None:
        try:
            # The first run compiles kernels and sets libraries up, which can't be recorded.
            self._forward(size)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Threads that read adapters meanwhile are none of the recording's business.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits_BV = self._forward(size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _log.warning(
                "The model's decode step can't be recorded, so it is launched piece by piece: %s", error
            )
            self.is_off = True
            return
        self._recorded[size, variant] = _Recorded(graph, logits_BV)


def batch_sizes(max_rows: int) -> list[int]:
    """1, 2, 4, then multiples of 8 up to 64, of 16 up to 128, of 32 beyond."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, max_rows, 32)]
    return [*(size for size in sizes if size < max_rows), max_rows]
