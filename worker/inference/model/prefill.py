"""The forward pass of steps that read prompts, as captured graphs where they fit one.

Shape letters: N tokens of all chunks in order, M tiles of chunks, V vocabulary, H hidden size.
"""

from collections.abc import Sequence as Listed

import torch

from worker.inference.model import attention
from worker.inference.model.forward import CapturedInputs, PassContext
from worker.inference.model.step_graphs import StepGraphs
from worker.models.device import on_device

# Streams wait while prompts are read: at most 50 ms for as many tokens of 7B on an H200.
TOKENS_PER_STEP = {"cpu": 512, "cuda": 1536}

# Sizes of captured graphs, in tokens, up to all that a step reads. A prefill without a graph is hundreds of
# launches, between any two of which threads that preprocess requests may take the interpreter.
SIZES = [64, 128, 256, 384, 512, 768, 1024, TOKENS_PER_STEP["cuda"]]


# A decode step, which reads all weights anew, takes longer than so many tokens more, or twice as many in all.
_MAX_GROWTH = 128


class PrefillForward:
    """The forward pass of prefills. Not thread-safe."""

    def __init__(self, context: PassContext) -> None:
        self._context = context
        self._rows = context.rows
        self._graphs = StepGraphs(self._forward_captured, SIZES) if context.uses_graphs else None
        self._inputs = CapturedInputs(context, SIZES[-1])
        tiles = tile_count(SIZES[-1], self._rows.padding_row)
        self._tiles_M4 = torch.zeros(tiles, 4, dtype=torch.int32, device=self._rows.device)

    def capture_all(self) -> None:
        """Capture graphs of all sizes: without adapters, and with all slots, which costs prefills little."""
        if self._graphs is None:
            return
        # The largest first: the smaller ones then use its memory.
        for slot_count in (self._context.slots.count, 0):
            self._context.slots.select({slot_count}, self._inputs.slots_N)
            self._graphs.capture_all(slot_count)

    def has_room(self, count: int, more: int) -> bool:
        """Whether a pass over `count` tokens may read `more` tokens too, in less time than a decode step."""
        size = self._graphs.size(count) if self._graphs is not None else None
        if size is None:
            # Torch's attention needs the positions on the host.
            return self._context.uses_kernels or self._rows.device.type == "cpu"
        assert self._graphs is not None
        larger = self._graphs.size(count + more)
        return larger is not None and larger <= max(size, _MAX_GROWTH) + _MAX_GROWTH

    def states(
        self, inputs_4N: torch.Tensor, chunks: list[attention.Chunk], used: set[int], rows: Listed[int] = ()
    ) -> torch.Tensor:
        """Last hidden states [≥ N + B, H] of these inputs, on the host, and of the last tokens of `rows`.

        `chunks`: the rows and positions of the inputs; `used`: all adapter slots. The next call may overwrite
        the states.
        """
        ends_4B = self._rows.inputs(rows)
        states_NH = self._replay(inputs_4N, chunks, used, ends_4B)
        return self._run(inputs_4N, chunks, used, ends_4B) if states_NH is None else states_NH

    def logits(self, inputs_4N: torch.Tensor, chunks: list[attention.Chunk], used: set[int]) -> torch.Tensor:
        """Logits [N, V] of all inputs, given as for `states`."""
        return self._run(inputs_4N, chunks, used, self._rows.inputs(()), has_logits=True)

    def discard_graphs(self) -> None:
        """Drop captured graphs, once the adapters' tensors were reallocated."""
        if self._graphs is not None:
            self._graphs.discard()

    def _run(
        self,
        inputs_4N: torch.Tensor,
        chunks: list[attention.Chunk],
        used: set[int],
        ends_4B: torch.Tensor,
        *,
        has_logits: bool = False,
    ) -> torch.Tensor:
        context = self._context
        all_4N = torch.cat([on_device(inputs_4N, self._rows.device), ends_4B], 1)
        ids_N, positions_N, slots_N, rows_N = all_4N
        context.slots.select(used, slots_N)
        step = attention.Step(context.cache, self._rows.block_tables_RP, rows_N, positions_N)
        if context.uses_kernels:
            step.tiles_M4, step.uses_kernels = self._tiles(chunks, ends_4B), True
        else:
            step.chunks = [*chunks, *(attention.Chunk(row, at, 1) for _, at, _, row in ends_4B.T.tolist())]
        return context.forward(ids_N, step, has_logits=has_logits)

    def _tiles(self, chunks: list[attention.Chunk], ends_4B: torch.Tensor) -> torch.Tensor:
        """The tiles of these chunks, and of the last tokens of rows: the device knows their positions."""
        tiles_M4 = on_device(attention.prompt_tiles(chunks), self._rows.device)
        count = sum(chunk.count for chunk in chunks)
        ends_B4 = torch.ones(ends_4B.shape[1], 4, dtype=torch.int32, device=self._rows.device)
        ends_B4[:, 0], ends_B4[:, 2] = ends_4B[3], ends_4B[1]
        ends_B4[:, 1] = torch.arange(count, count + len(ends_B4), device=self._rows.device)
        return torch.cat([tiles_M4, ends_B4])

    def _replay(
        self, inputs_4N: torch.Tensor, chunks: list[attention.Chunk], used: set[int], ends_4B: torch.Tensor
    ) -> torch.Tensor | None:
        """The states by a captured graph; None where the inputs fit none."""
        count = inputs_4N.shape[1]
        total = count + ends_4B.shape[1]
        size = self._graphs.size(total) if self._graphs is not None else None
        if size is None:
            return None
        assert self._graphs is not None
        self._inputs.set(inputs_4N, size)
        self._inputs.values_4N[:, count:total] = ends_4B
        tiles_M4 = self._tiles(chunks, ends_4B)
        self._tiles_M4[: len(tiles_M4)] = tiles_M4
        # A tile of another pass would be computed again.
        self._tiles_M4[len(tiles_M4) :].zero_()
        self._context.slots.select(used, self._inputs.slots_N)
        return self._graphs.run(total, self._context.slots.slot_count)

    def _forward_captured(self, size: int) -> torch.Tensor:
        """The states of the first `size` inputs."""
        ids_N, positions_N, _, rows_N = self._inputs.values_4N[:, :size]
        step = attention.Step(
            self._context.cache,
            self._rows.block_tables_RP,
            rows_N,
            positions_N,
            uses_kernels=True,
            tiles_M4=self._tiles_M4[: tile_count(size, self._rows.padding_row)],
        )
        return self._context.forward(ids_N, step)


def tile_count(tokens: int, max_rows: int) -> int:
    """Maximum tiles of a pass: a row has one chunk at most, whose last tile may be a part of one."""
    return tokens // 64 + min(tokens, max_rows)
