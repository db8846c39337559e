"""The forward pass of steps that read prompts, as captured graphs where they fit one.

Shape letters: N tokens of all chunks in order, M tiles of chunks, V vocabulary, H hidden size.
"""

from collections.abc import Sequence as Listed
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch

from worker.inference.model import attention
from worker.inference.model.passes.forward import (
    UNKNOWN,
    CapturedInputs,
    ChunkTokens,
    PassContext,
    complete,
    complete_tiles,
    pass_inputs,
)
from worker.inference.model.step_graphs import StepGraphs
from worker.models.device import on_device

# Streams wait while prompts are read: at most 50 ms for as many tokens of 7B on an H200.
TOKENS_PER_STEP = {"cpu": 512, "cuda": 1536}

# Sizes of captured graphs, in tokens, up to all that a step reads. A prefill without a graph is hundreds of
# launches, between any two of which threads that preprocess requests may take the interpreter.
SIZES = [64, 128, 256, 384, 512, 768, 1024, TOKENS_PER_STEP["cuda"]]
# A pass over so many tokens more, or over twice as many in all, takes less time than a decode step besides.
_MAX_GROWTH = 128


class PrefillForward:
    """The forward pass of prefills. Not thread-safe."""

    def __init__(self, context: PassContext) -> None:
        self._context = context
        self._rows = context.rows
        self._graphs = StepGraphs(self._forward_captured, SIZES) if context.uses_graphs else None
        self._inputs = CapturedInputs(context, SIZES[-1], tile_count(SIZES[-1], self._rows.padding_row))

    def capture_all(self) -> None:
        """Capture graphs of all sizes: without adapters, and with all slots, which costs prefills little."""
        if self._graphs is None:
            return
        # The largest first: the smaller ones then use its memory.
        for slot_count in (self._context.slots.count, 0):
            self._context.slots.select({slot_count}, self._inputs.slots_N)
            self._graphs.capture_all(slot_count)

    @property
    def reads_unknown(self) -> bool:
        """Whether it reads tokens at positions that the host does not know, as torch's attention can't."""
        return self._context.uses_kernels or self._rows.device.type == "cpu"

    def has_room(self, count: int, more: int) -> bool:
        """Whether a pass over `count` tokens may read `more` tokens too, in less time than a decode step."""
        size = self._graphs.size(count) if self._graphs is not None else None
        if size is None:
            return True
        assert self._graphs is not None
        larger = self._graphs.size(count + more)
        return larger is not None and larger <= max(size, _MAX_GROWTH) + _MAX_GROWTH

    def states(self, chunks: Listed[ChunkTokens]) -> torch.Tensor:
        """Last hidden states [≥ N, H] of the tokens of these chunks. The next call may overwrite them."""
        inputs_4N = pass_inputs(chunks)
        count = inputs_4N.shape[1]
        size = self._graphs.size(count) if self._graphs is not None else None
        if size is None:
            return self._run(chunks, has_logits=False)
        assert self._graphs is not None
        tiles_M4 = np.zeros((tile_count(size, self._rows.padding_row), 4), dtype=np.int64)
        tiles = attention.prompt_tiles([one.chunk for one in chunks])
        tiles_M4[: len(tiles)] = tiles
        self._inputs.set(inputs_4N, size, tiles_M4)
        self._context.slots.select({one.adapter_slot for one in chunks}, self._inputs.slots_N)
        return self._graphs.run(count, self._context.slots.slot_count)

    def logits(self, chunks: Listed[ChunkTokens]) -> torch.Tensor:
        """Logits [N, V] of the tokens of these chunks."""
        return self._run(chunks, has_logits=True)

    def discard_graphs(self) -> None:
        """Drop captured graphs, once the adapters' tensors were reallocated."""
        if self._graphs is not None:
            self._graphs.discard()

    def _run(self, chunks: Listed[ChunkTokens], *, has_logits: bool) -> torch.Tensor:
        context = self._context
        inputs_4N = on_device(torch.from_numpy(pass_inputs(chunks).copy()), self._rows.device)
        ids_N, positions_N, slots_N, rows_N = complete(inputs_4N, self._rows)
        context.slots.select({one.adapter_slot for one in chunks}, slots_N)
        places = [one.chunk for one in chunks]
        step = attention.Step(context.cache, self._rows.block_tables_RP, rows_N, positions_N, places)
        if context.uses_kernels:
            step.use_kernels()
            assert step.tiles_M4 is not None
            step.tiles_M4 = complete_tiles(step.tiles_M4, self._rows)
        else:
            step.chunks = _with_starts(places, positions_N)
        return context.forward(ids_N, step, has_logits=has_logits)

    def _forward_captured(self, size: int) -> torch.Tensor:
        """The states of the first `size` inputs."""
        inputs_4N, tiles_M4 = self._inputs.read(size, tile_count(size, self._rows.padding_row))
        ids_N, positions_N, _, rows_N = inputs_4N
        step = attention.Step(
            self._context.cache,
            self._rows.block_tables_RP,
            rows_N,
            positions_N,
            uses_kernels=True,
            tiles_M4=tiles_M4,
        )
        return self._context.forward(ids_N, step)


def tile_count(tokens: int, max_rows: int) -> int:
    """Most tiles of a pass: a row has one chunk at most, whose last tile may be a part of one."""
    return tokens // 64 + min(tokens, max_rows)


def _with_starts(chunks: list[attention.Chunk], positions_N: torch.Tensor) -> list[attention.Chunk]:
    """Chunks with the positions of their tokens [N] in the place of UNKNOWN."""
    if all(one.start != UNKNOWN for one in chunks):
        return chunks
    firsts = accumulate((one.count for one in chunks[:-1]), initial=0)
    positions = positions_N.tolist()
    return [replace(one, start=positions[first]) for one, first in zip(chunks, firsts, strict=True)]
