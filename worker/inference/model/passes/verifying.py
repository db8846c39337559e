"""Logits at several positions of each row at once: of the next token, and after each drafted token.

On a GPU every position is a row of its own for the decode kernel, with a copy of its row's block table: the
keys of all positions are stored before any query attends to them, and a query sees those up to its own. So
any number of positions of any rows can be captured as a CUDA graph, as a decode step is. Elsewhere the
positions of a row are computed as a chunk of a prompt.
Shape letters: R all rows, P blocks of a row, N positions of all rows in order, V vocabulary.
"""

import logging
from collections.abc import Sequence as Listed

import torch

from worker.inference.batching.step_costs import SIZES
from worker.inference.model import attention
from worker.inference.model.passes.forward import (
    CapturedInputs,
    ChunkTokens,
    Inputs,
    PassContext,
    pass_inputs,
)
from worker.inference.model.step_graphs import StepGraphs
from worker.models.device import on_device

MAX_POSITIONS = SIZES[-1]

_log = logging.getLogger(__name__)


class VerifyingForward:
    """The forward pass of verifying steps. Not thread-safe."""

    def __init__(self, context: PassContext) -> None:
        self._context = context
        self._graphs = StepGraphs(self._forward_captured, list(SIZES)) if context.uses_graphs else None
        self._inputs = CapturedInputs(context, MAX_POSITIONS)
        self._device = context.rows.device
        self._indices_N = torch.arange(MAX_POSITIONS, device=self._device)

    def logits(self, chunks: Listed[ChunkTokens]) -> torch.Tensor:
        """Logits [N, V] of the tokens of these chunks."""
        inputs_4N = pass_inputs(chunks)
        used = {one.adapter_slot for one in chunks}
        if self._graphs is not None and self._graphs.size(inputs_4N.shape[1]) is not None:
            return self._replay(self._graphs, inputs_4N, used)
        ids_N, positions_N, slots_N, rows_N = on_device(torch.from_numpy(inputs_4N.copy()), self._device)
        context = self._context
        context.slots.select(used, slots_N)
        if context.uses_kernels:
            return context.forward(ids_N, self._step_of_positions(rows_N, positions_N))
        places = [one.chunk for one in chunks]
        step = attention.Step(context.cache, context.rows.block_tables_RP, rows_N, positions_N, places)
        return context.forward(ids_N, step, has_logits=True)

    def is_equal_to(self, plain_NV: torch.Tensor, ids_N: torch.Tensor, tolerance: float) -> bool:
        """Whether the logits of these tokens, in row 0 from position 0 on, are those of plain steps.

        `tolerance`: the largest relative error (Euclidean norm).
        """
        chunk = ChunkTokens(attention.Chunk(0, 0, len(ids_N)), ids_N.tolist(), adapter_slot=0)
        try:
            found_NV = self.logits([chunk]).float()
        # Triton raises many kinds of errors where there is no compiler or a shape is unsupported.
        except Exception as failure:
            _log.warning("Drafted tokens can't be verified: %s", failure, exc_info=True)
            return False
        error = float((found_NV - plain_NV).norm() / plain_NV.norm())
        # In this form, so that NaN fails too.
        if not error <= tolerance:
            _log.warning("Drafted tokens are not verified: their logits come out wrong (error %.2g)", error)
            return False
        return True

    def discard_graphs(self) -> None:
        """Drop captured graphs, once the adapters' tensors were reallocated."""
        if self._graphs is not None:
            self._graphs.discard()

    def _replay(self, graphs: StepGraphs, inputs_4N: Inputs, used: set[int]) -> torch.Tensor:
        count = inputs_4N.shape[1]
        size = graphs.size(count) or count
        self._inputs.set(inputs_4N, size)
        self._context.slots.select(used, self._inputs.slots_N)
        return graphs.run(count, self._context.slots.slot_count)[:count]

    def _forward_captured(self, size: int) -> torch.Tensor:
        """Logits of the first `size` inputs."""
        ids_N, positions_N, _, rows_N = self._inputs.read(size)[0]
        return self._context.forward(ids_N, self._step_of_positions(rows_N, positions_N))

    def _step_of_positions(self, rows_N: torch.Tensor, positions_N: torch.Tensor) -> attention.Step:
        """A decode step in which every position is a row of its own."""
        tables_NP = self._context.rows.block_tables_RP[rows_N]
        indices_N = self._indices_N[: len(rows_N)]
        return attention.Step(self._context.cache, tables_NP, indices_N, positions_N, uses_kernels=True)
