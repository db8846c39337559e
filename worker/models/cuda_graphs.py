"""CUDA graphs: what a piece of work launches on the device is captured once, and replayed as a whole.

Work that is captured reads and writes memory that stays where it is: inputs are copied into it before a
replay, and the output is overwritten by the next one. The work must have run before: its first run compiles
kernels and initialises libraries, which can't be captured. Knows nothing of models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Output = TypeVar("Output")


@dataclass(frozen=True)
class CapturedGraph(Generic[Output]):
    """A graph and what its work returned, in memory that every replay overwrites."""

    graph: torch.cuda.CUDAGraph
    output: Output

    def replay(self) -> Output:
        """Launch the work again on the present stream, without waiting for it. Returns its output."""
        self.graph.replay()
        return self.output


class GraphPool:
    """Captures graphs that share one pool of memory, so no two of them may be under way at once."""

    def __init__(self, stream: torch.cuda.Stream | None = None) -> None:
        """Capture on `stream`, which is not the default stream; None: on PyTorch's own stream for that."""
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = stream

    def capture(self, work: Callable[[], Output]) -> CapturedGraph[Output]:
        """Capture the work without running it. Raises RuntimeError where a part can't be captured."""
        graph = torch.cuda.CUDAGraph()
        # `thread_local`: other threads of the process may allocate and copy meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = work()
        return CapturedGraph(graph, output)
