"""The forward pass of steps that read prompts, as captured graphs where they fit one.

Shape letters: N tokens of all chunks in order, M tiles of chunks, V vocabulary, H hidden size.
"""

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


class PrefillForward:
    """The forward pass of prefills. Not thread-safe."""

    def __init__(self, context: PassContext) -> None:
        self._context = context
        self._graphs = StepGraphs(self._forward_captured, SIZES) if context.uses_graphs else None
        self._inputs = CapturedInputs(context, SIZES[-1])
        self._device = context.block_tables_RP.device
        self._tiles_M4 = torch.zeros(tile_count(SIZES[-1]), 4, dtype=torch.int32, device=self._device)

    def capture_all(self) -> None:
        """Capture graphs of all sizes: without adapters, and with all slots, which costs prefills little."""
        if self._graphs is None:
            return
        # The largest first: the smaller ones then use its memory.
        for slot_count in (self._context.slots.count, 0):
            self._context.slots.select({slot_count}, self._inputs.slots_N)
            self._graphs.capture_all(slot_count)

    def has_room(self, count: int, more: int) -> bool:
        """Whether a captured pass over `count` tokens computes as many as one over `more` tokens more.

        Without graphs a few tokens cost next to nothing.
        """
        return self._graphs is None or self._graphs.size(count) == self._graphs.size(count + more)

    def states(self, inputs_4N: torch.Tensor, chunks: list[attention.Chunk], used: set[int]) -> torch.Tensor:
        """Last hidden states [≥ N, H] of these tokens, rows, positions and adapter slots, on the host.

        `chunks`: the same rows and positions; `used`: the adapter slots. The next call may overwrite them.
        """
        states_NH = self._replay(inputs_4N, chunks, used)
        return self._run(inputs_4N, chunks, used, has_logits=False) if states_NH is None else states_NH

    def logits(self, inputs_4N: torch.Tensor, chunks: list[attention.Chunk], used: set[int]) -> torch.Tensor:
        """Logits [N, V] of all tokens, given as for `states`."""
        return self._run(inputs_4N, chunks, used, has_logits=True)

    def discard_graphs(self) -> None:
        """Drop captured graphs, once the adapters' tensors were reallocated."""
        if self._graphs is not None:
            self._graphs.discard()

    def _run(
        self, inputs_4N: torch.Tensor, chunks: list[attention.Chunk], used: set[int], *, has_logits: bool
    ) -> torch.Tensor:
        context = self._context
        ids_N, rows_N, positions_N, slots_N = on_device(inputs_4N, self._device)
        context.slots.select(used, slots_N)
        step = attention.Step(context.cache, context.block_tables_RP, rows_N, positions_N, chunks)
        if context.uses_kernels:
            step.use_kernels()
        return context.forward(ids_N, step, has_logits=has_logits)

    def _replay(
        self, inputs_4N: torch.Tensor, chunks: list[attention.Chunk], used: set[int]
    ) -> torch.Tensor | None:
        """The states by a captured graph; None where the chunks fit none."""
        count = inputs_4N.shape[1]
        size = self._graphs.size(count) if self._graphs is not None else None
        if size is None:
            return None
        assert self._graphs is not None
        tiles = attention.prompt_tiles(chunks)
        if len(tiles) > tile_count(size):
            return None
        self._inputs.set(inputs_4N, size)
        empty = torch.zeros(tile_count(size) - len(tiles), 4, dtype=torch.int32)
        self._tiles_M4[: tile_count(size)] = on_device(torch.cat([tiles, empty]), self._device)
        self._context.slots.select(used, self._inputs.slots_N)
        return self._graphs.run(count, self._context.slots.slot_count)

    def _forward_captured(self, size: int) -> torch.Tensor:
        """The states of the first `size` inputs."""
        ids_N, rows_N, positions_N, _ = self._inputs.values_4N[:, :size]
        step = attention.Step(
            self._context.cache,
            self._context.block_tables_RP,
            rows_N,
            positions_N,
            uses_kernels=True,
            tiles_M4=self._tiles_M4[: tile_count(size)],
        )
        return self._context.forward(ids_N, step)


def tile_count(tokens: int) -> int:
    """Maximum tiles of a captured prefill: each chunk has at least one, however short."""
    max_chunks = 64 if tokens <= 1024 else 128
    return tokens // 64 + max_chunks
