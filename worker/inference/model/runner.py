"""Runs the base model: reads prompts in chunks and samples one token for every row of the batch.

It is a transformers model in which `support.py` has replaced the attention function and the `forward` of the
linear layers, and on a GPU also norms, rotary embedding and SwiGLU where a kernel gives the same result.
Only `DeviceTokens.to_host` waits for the device. Knows nothing of queues, text or HTTP.
Shape letters: R all rows, B rows of a step, N tokens of a step, P blocks of a row, V vocabulary, H hidden
size.
"""

import gc

import torch
from transformers import PreTrainedModel

from worker.inference.adapters.cache import CachedAdapter
from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.batching.block_manager import BLOCK_TOKENS, block_count
from worker.inference.batching.embedding import HiddenSum
from worker.inference.batching.model_batch import Capacity, Move, Prefill
from worker.inference.batching.sequence import AdapterHandle, SampledToken, Sequence
from worker.inference.device_errors import is_usable, memory_errors
from worker.inference.model import attention, support
from worker.inference.model.kv_cache import KVCache
from worker.inference.model.step_graphs import StepGraphs, batch_sizes
from worker.inference.sampling.sampler import Logprobs, SampledBatch, Sampler
from worker.models.device import Device, free_memory_bytes, on_device

MAX_ROWS = {"cpu": 32, "cuda": 128}
# Share of the memory that is free once the model is loaded; a training job and adapters need some too.
CACHE_SHARE_OF_FREE_MEMORY = {"cpu": 0.25, "cuda": 0.5}
_PREFILL_TOKENS_PER_STEP = {"cpu": 512, "cuda": 2048}
# The rank to allocate for in advance. The first adapter of a higher rank takes longer to load.
_EXPECTED_RANK = 16

# Sizes of captured prefill graphs, in tokens. Longer prefills keep the device busy while they are launched.
_PREFILL_SIZES = [64, 128, 256, 384, 512, 768, 1024]


class DeviceTokens:
    """The tokens of a step, copied to the host without waiting for the device."""

    def __init__(self, sampled: SampledBatch) -> None:
        self._arrived: torch.cuda.Event | None = None
        if sampled.tokens_B.is_cuda:
            sampled = _on_host(sampled)
            # Blocking: the waiting thread sleeps instead of spinning, so that other threads can run.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()
        self._sampled = sampled

    def to_host(self) -> list[SampledToken]:
        """The tokens by row. Waits for the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._sampled.to_host()


class ModelRunner:
    """One base model on the device. Not thread-safe."""

    def __init__(
        self,
        model: PreTrainedModel,
        device: Device,
        *,
        adapter_slot_count: int,
        max_rows: int | None = None,
        cache_share: float | None = None,
        uses_graphs: bool = True,
    ) -> None:
        prepared = support.prepare_model(model)
        max_rows = max_rows or MAX_ROWS[device.kind]
        self.is_asynchronous = device.is_cuda
        self.weight_bits = 4 if getattr(model, "is_loaded_in_4bit", False) else 8 * model.dtype.itemsize
        self._model = model
        self._device = device
        self._uses_kernels = prepared.uses_kernels
        context_length = support.context_length(model)
        share = cache_share or CACHE_SHARE_OF_FREE_MEMORY[device.kind]
        blocks = int(free_memory_bytes(device) * share / (prepared.bytes_per_token * BLOCK_TOKENS))
        self.capacity = Capacity(
            max_rows=max_rows,
            block_count=min(blocks, max_rows * block_count(context_length) + 1),
            context_length=context_length,
            prefill_tokens_per_step=_PREFILL_TOKENS_PER_STEP[device.kind],
        )
        self._cache = KVCache(self.capacity.block_count)
        self._slots = LoraSlots(
            model,
            prepared.groups,
            count=adapter_slot_count,
            dtype=model.dtype,
            uses_kernels=self._uses_kernels,
        )
        embedding = model.get_input_embeddings().weight
        assert isinstance(embedding, torch.Tensor)
        self._embedding_count = embedding.shape[0]
        vocabulary_size = model.get_output_embeddings().weight.shape[0]
        self._sampler = Sampler(max_rows=max_rows, vocabulary_size=vocabulary_size, device=device.torch)
        # Last token, position, adapter slot and activity in one tensor, so that one copy sets a row.
        self._state_4R = torch.zeros(4, max_rows, dtype=torch.long, device=device.torch)
        self._tokens_R, self._positions_R, self._adapter_slots_R, self._active_R = self._state_4R
        self._row_indices_R = torch.arange(max_rows, device=device.torch)
        # One row more than there are sequences, for the padding tokens of a captured prefill.
        self._block_tables_RP = torch.zeros(
            max_rows + 1, block_count(self.capacity.max_length), dtype=torch.int32, device=device.torch
        )
        # The positions on the host, to know the length of a row without a wait for the device.
        self._positions = [0] * max_rows
        self._decode_graphs: StepGraphs | None = None
        self._prefill_graphs: StepGraphs | None = None
        self._graphs_layout = self._slots.layout_version
        if self._uses_kernels and uses_graphs:
            self._decode_graphs = StepGraphs(self._forward_rows, batch_sizes(max_rows))
            self._prefill_graphs = StepGraphs(self._forward_prefill, _PREFILL_SIZES)
        # The inputs of captured prefill graphs: token, row, position and adapter slot; and the tiles.
        self._prefill_4N = torch.zeros(4, _PREFILL_SIZES[-1], dtype=torch.long, device=device.torch)
        self._tiles_M4 = torch.zeros(
            _tile_count(_PREFILL_SIZES[-1]), 4, dtype=torch.int32, device=device.torch
        )

    def warm_up(self) -> None:
        """Allocate adapter slots and capture all graphs, before the first request. Raises OutOfMemory."""
        if self._decode_graphs is None or self._prefill_graphs is None:
            return
        with memory_errors(), torch.inference_mode():
            self._slots.prepare(_EXPECTED_RANK)
            self._graphs_layout = self._slots.layout_version
            for has_adapters in (False, True):
                used = {1} if has_adapters else set()
                self._slots.select(used, self._prefill_4N[3])
                self._prefill_graphs.capture_all(has_adapters)
                self._slots.select(used, self._adapter_slots_R)
                self._decode_graphs.capture_all(has_adapters)

    def load_adapter(self, slot: int, adapter: AdapterHandle) -> None:
        """Copy an adapter into a slot. Raises AdapterUnsupported and OutOfMemory."""
        assert isinstance(adapter, CachedAdapter)
        with memory_errors(), torch.inference_mode():
            self._slots.load(slot, adapter)

    def start(self, sequence: Sequence) -> None:
        """Set the row of a sequence that was given a row and blocks.

        Raises InvalidRequest for tokens that the base model does not have, and OutOfMemory.
        """
        row, prompt = sequence.row, sequence.prompt
        prompt.check_ids(self._embedding_count)
        with memory_errors(), torch.inference_mode():
            blocks = torch.tensor(sequence.blocks, dtype=torch.int32)
            self._block_tables_RP[row, : len(blocks)] = on_device(blocks, self._device.torch)
            if not self._uses_kernels:
                self._cache.clear(sequence.blocks[sequence.prefilled_count // BLOCK_TOKENS :])
            self._sampler.set_row(row, prompt.sampling, prompt.seed, prompt.token_ids)
            self._set_row(sequence, sequence.prefilled_count)

    def prefill(self, prefills: list[Prefill]) -> list[HiddenSum | None]:
        """Read chunks of prompts. Raises OutOfMemory, which concerns only these prompts.

        Returns the sum [H] of the last hidden states of each chunk of a text whose embedding is wanted.
        """
        chunks = [
            attention.Chunk(one.sequence.row, one.sequence.prefilled_count, one.token_count)
            for one in prefills
        ]
        columns = [
            (token, chunk.row, position, prefill.sequence.adapter_slot)
            for chunk, prefill in zip(chunks, prefills, strict=True)
            for position, token in enumerate(
                prefill.sequence.prompt.token_ids[chunk.start : chunk.end], start=chunk.start
            )
        ]
        with memory_errors(), torch.inference_mode():
            self._drop_stale_graphs()
            inputs_4N = torch.tensor(columns).T.contiguous()
            used = {one.sequence.adapter_slot for one in prefills}
            hidden_NH = self._replay_prefill(inputs_4N, chunks, used)
            if hidden_NH is None:
                ids_N, rows_N, positions_N, slots_N = on_device(inputs_4N, self._device.torch)
                self._slots.select(used, slots_N)
                step = attention.Step(self._cache, self._block_tables_RP, rows_N, positions_N, chunks)
                if self._uses_kernels:
                    step.use_kernels()
                hidden_NH = self._forward(ids_N, step)
            for chunk, prefill in zip(chunks, prefills, strict=True):
                self._set_row(prefill.sequence, chunk.end)
            chunks_NH = hidden_NH[: len(columns)].split([one.token_count for one in prefills])
            return [
                chunk_NH.sum(0, dtype=torch.float32) if prefill.sequence.prompt.embeds else None
                for chunk_NH, prefill in zip(chunks_NH, prefills, strict=True)
            ]

    def decode(self, running: list[Sequence]) -> DeviceTokens:
        """Sample a token for each row. The token of a row whose prompt is not read yet is undefined.

        Raises OutOfMemory. After an error no row has advanced.
        """
        count = len(running)
        used = {one.adapter_slot for one in running}
        with memory_errors(), torch.inference_mode():
            self._drop_stale_graphs()
            if self._decode_graphs is None:
                self._slots.select(used, self._adapter_slots_R[:count])
                logits_BV = self._forward_rows(count)
            else:
                self._slots.select(used, self._adapter_slots_R)
                logits_BV = self._decode_graphs.run(count, self._slots.selection is not None)[:count]
            return self._sample(logits_BV, running, slice(count))

    def decode_alone(self, sequence: Sequence) -> DeviceTokens:
        """Sample a token for one row, after `decode` failed for its batch. Raises OutOfMemory."""
        rows = slice(sequence.row, sequence.row + 1)
        with memory_errors(), torch.inference_mode():
            self._slots.select({sequence.adapter_slot}, self._adapter_slots_R[rows])
            return self._sample(self._forward_rows(1, sequence.row), [sequence], rows)

    def move(self, move: Move) -> None:
        """Move a sequence to another row."""
        with torch.inference_mode():
            self._sampler.move(move.source, move.target)
            self._state_4R[:, move.target] = self._state_4R[:, move.source]
            self._block_tables_RP[move.target] = self._block_tables_RP[move.source]
            self._positions[move.target] = self._positions[move.source]

    def free(self, row: int) -> None:
        """Reset a row without a sequence: its writes go to block 0, which is never read."""
        with torch.inference_mode():
            self._state_4R[:, row].zero_()
            self._block_tables_RP[row].zero_()
            self._positions[row] = 0

    def is_usable(self) -> bool:
        """Whether the device still works. After some errors of a GPU only a new process can use it."""
        return is_usable(self._device)

    def close(self) -> None:
        """Free all memory."""
        # Graphs refer to methods of this runner, which would keep its tensors alive.
        self._decode_graphs = self._prefill_graphs = None
        del self._model, self._cache, self._slots, self._sampler
        gc.collect()
        if self._device.is_cuda:
            torch.cuda.empty_cache()

    def _set_row(self, sequence: Sequence, read_count: int) -> None:
        """Set a row's state after `read_count` prompt tokens. It is active once all but the last are read."""
        row, token_ids = sequence.row, sequence.prompt.token_ids
        position = min(read_count, len(token_ids) - 1)
        is_active = position == len(token_ids) - 1 and not sequence.prompt.embeds
        state = torch.tensor((token_ids[-1], position, sequence.adapter_slot, is_active), dtype=torch.long)
        self._state_4R[:, row] = on_device(state, self._device.torch)
        self._positions[row] = position

    def _sample(self, logits_BV: torch.Tensor, sequences: list[Sequence], rows: slice) -> DeviceTokens:
        """Sample the tokens of these rows, and make them the inputs of the next step."""
        self._sampler.set_masks(sequences)
        active_B = self._active_R[rows]
        sampled = self._sampler.sample(logits_BV, sequences[0].row, active_B.bool())
        tokens = DeviceTokens(sampled)
        # The next step may be launched before the host has seen NO_TOKEN, which is no id.
        ids_B = sampled.tokens_B.clamp(0, self._embedding_count - 1)
        # Rows whose prompt is not read are computed too, but their state does not change.
        self._tokens_R[rows] = torch.where(active_B > 0, ids_B, self._tokens_R[rows])
        self._positions_R[rows] += active_B
        for one in sequences:
            self._positions[one.row] += one.is_prefilled
        return tokens

    def _drop_stale_graphs(self) -> None:
        """Drop captured graphs once the adapters' tensors were reallocated."""
        if self._graphs_layout == self._slots.layout_version:
            return
        self._graphs_layout = self._slots.layout_version
        for graphs in (self._decode_graphs, self._prefill_graphs):
            if graphs is not None:
                graphs.discard()

    def _replay_prefill(
        self, inputs_4N: torch.Tensor, chunks: list[attention.Chunk], used: set[int]
    ) -> torch.Tensor | None:
        """Read prompts with a captured graph. Returns hidden states [≥ N, H]; None where they do not fit one.

        The next replay overwrites the states.
        """
        count = inputs_4N.shape[1]
        size = self._prefill_graphs.size(count) if self._prefill_graphs is not None else None
        if size is None:
            return None
        assert self._prefill_graphs is not None
        tiles = attention.prompt_tiles(chunks)
        if len(tiles) > _tile_count(size):
            return None
        padding = torch.tensor([[0], [self._row_indices_R.shape[0]], [0], [0]])
        padded_4N = torch.cat([inputs_4N, padding.expand(4, size - count)], 1)
        self._prefill_4N[:, :size] = on_device(padded_4N, self._device.torch)
        empty = torch.zeros(_tile_count(size) - len(tiles), 4, dtype=torch.int32)
        self._tiles_M4[: _tile_count(size)] = on_device(torch.cat([tiles, empty]), self._device.torch)
        self._slots.select(used, self._prefill_4N[3])
        return self._prefill_graphs.run(count, self._slots.selection is not None)

    def _forward_prefill(self, size: int) -> torch.Tensor:
        """Read the first `size` tokens of `_prefill_4N`."""
        ids_N, rows_N, positions_N, _ = self._prefill_4N[:, :size]
        step = attention.Step(
            self._cache,
            self._block_tables_RP,
            rows_N,
            positions_N,
            uses_kernels=True,
            tiles_M4=self._tiles_M4[: _tile_count(size)],
        )
        return self._forward(ids_N, step)

    def _forward_rows(self, count: int, first_row: int = 0) -> torch.Tensor:
        """Logits of the next token of `count` rows."""
        rows = slice(first_row, first_row + count)
        tables_BP, indices_B = self._block_tables_RP[rows], self._row_indices_R[:count]
        step = attention.Step(self._cache, tables_BP, indices_B, self._positions_R[rows])
        if self._uses_kernels:
            step.use_kernels()
        else:
            step.key_count = max(self._positions[rows]) + 1
        return self._forward(self._tokens_R[rows], step)

    def _forward(self, ids_N: torch.Tensor, step: attention.Step) -> torch.Tensor:
        """Logits [N, V] of a decode step. For a prefill, the last hidden states [N, H]: no token is made."""
        self._slots.begin(len(ids_N))
        model = self._model.base_model if step.is_prefill else self._model
        output = model(input_ids=ids_N[None], position_ids=step.positions_N[None], use_cache=False, step=step)
        logits_NV: torch.Tensor = output[0][0]
        return logits_NV


def _tile_count(tokens: int) -> int:
    """Maximum tiles of a captured prefill: each chunk has at least one, however short."""
    return tokens // 64 + 64


def _on_host(sampled: SampledBatch) -> SampledBatch:
    """Start a copy to pinned memory on the host, complete once the stream reaches it."""
    logprobs = sampled.logprobs
    if logprobs is not None:
        logprobs = Logprobs(
            _copy(logprobs.chosen_B), _copy(logprobs.top_values_BK), _copy(logprobs.top_ids_BK)
        )
    return SampledBatch(_copy(sampled.tokens_B), logprobs, sampled.top_counts)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
