"""Runs the base model: reads prompts in chunks and samples one token for every row of the batch.

It is a transformers model in which `support.py` has replaced the attention function and the `forward` of the
linear layers, and on a GPU also norms, rotary embedding and SwiGLU where a kernel gives the same result.
Only `DeviceTokens.to_host` waits for the device. Knows nothing of queues, text or HTTP.
Shape letters: R all rows, B rows of a step, N tokens of a step, P blocks of a row, V vocabulary.
"""

import contextlib
import gc
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from app.core.errors.jobs import OutOfMemory
from worker.inference.adapters.cache import CachedAdapter
from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.batching.block_manager import BLOCK_TOKENS, block_count
from worker.inference.batching.model_batch import Capacity, Move, Prefill
from worker.inference.batching.sequence import AdapterHandle, SampledToken, Sequence
from worker.inference.model import attention, support as model_support
from worker.inference.model.kv_cache import KVCache
from worker.inference.model.step_graphs import StepGraphs, batch_sizes
from worker.inference.sampling.sampler import Logprobs, SampledBatch, Sampler
from worker.models.device import Device, free_memory_bytes, on_device

MAX_ROWS = {"cpu": 32, "cuda": 128}
# Of the memory that is free once the model is loaded; a training job and the adapters want some too.
CACHE_SHARE_OF_FREE_MEMORY = {"cpu": 0.25, "cuda": 0.5}
_PREFILL_TOKENS_PER_STEP = {"cpu": 512, "cuda": 2048}
# The rank that most adapters have. A larger one costs a moment when the first of its kind comes.
_EXPECTED_RANK = 16

# Tokens of prompts that are read by a recording; more keep the device busy while the next are launched.
_PROMPT_SIZES = [64, 128, 256, 384, 512, 768, 1024]


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
    """One base model on the device. All of it is used from one thread."""

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
        adopted = model_support.adopt(model)
        max_rows = max_rows or MAX_ROWS[device.kind]
        self.is_asynchronous = device.is_cuda
        self.weight_bits = 4 if getattr(model, "is_loaded_in_4bit", False) else 8 * model.dtype.itemsize
        self._model = model
        self._device = device
        self._uses_kernels = adopted.uses_kernels
        context_length = model_support.context_length(model)
        share = cache_share or CACHE_SHARE_OF_FREE_MEMORY[device.kind]
        blocks = int(free_memory_bytes(device) * share / (adopted.bytes_per_token * BLOCK_TOKENS))
        self.capacity = Capacity(
            max_rows=max_rows,
            block_count=min(blocks, max_rows * block_count(context_length) + 1),
            context_length=context_length,
            prefill_tokens_per_step=_PREFILL_TOKENS_PER_STEP[device.kind],
        )
        self._cache = KVCache(self.capacity.block_count)
        self._slots = LoraSlots(
            model,
            adopted.groups,
            count=adapter_slot_count,
            dtype=model.dtype,
            uses_kernels=self._uses_kernels,
        )
        vocabulary_size = model.get_output_embeddings().weight.shape[0]
        self._sampler = Sampler(max_rows=max_rows, vocabulary_size=vocabulary_size, device=device.torch)
        # One tensor, so that a row is set with one copy: last token, position, adapter slot, is it active.
        self._state_4R = torch.zeros(4, max_rows, dtype=torch.long, device=device.torch)
        self._tokens_R, self._positions_R, self._adapter_slots_R, self._active_R = self._state_4R
        self._each_R = torch.arange(max_rows, device=device.torch)
        # One row more than there are sequences: tokens that stand for nobody belong to it.
        self._block_tables_RP = torch.zeros(
            max_rows + 1, block_count(self.capacity.max_length), dtype=torch.int32, device=device.torch
        )
        # The same on the host, so that nobody has to ask the device how long a row is.
        self._positions = [0] * max_rows
        self._decode_graphs: StepGraphs | None = None
        self._prefill_graphs: StepGraphs | None = None
        self._graphs_layout = self._slots.layout_version
        if self._uses_kernels and uses_graphs:
            self._decode_graphs = StepGraphs(self._forward_rows, batch_sizes(max_rows))
            self._prefill_graphs = StepGraphs(self._forward_prompts, _PROMPT_SIZES)
        # What a recorded reading of prompts reads: token, row, position and adapter slot; and its tiles.
        self._prompt_4N = torch.zeros(4, _PROMPT_SIZES[-1], dtype=torch.long, device=device.torch)
        self._tiles_M4 = torch.zeros(
            _tile_count(_PROMPT_SIZES[-1]), 4, dtype=torch.int32, device=device.torch
        )

    def warm_up(self) -> None:
        """Do once what the first requests would wait for otherwise. Raises OutOfMemory."""
        if self._decode_graphs is None or self._prefill_graphs is None:
            return
        with _memory_errors(), torch.inference_mode():
            self._slots.prepare(_EXPECTED_RANK)
            self._graphs_layout = self._slots.layout_version
            for has_adapters in (False, True):
                used = {1} if has_adapters else set()
                self._slots.select(used, self._prompt_4N[3])
                self._prefill_graphs.record_all(has_adapters)
                self._slots.select(used, self._adapter_slots_R)
                self._decode_graphs.record_all(has_adapters)

    def load_adapter(self, slot: int, adapter: AdapterHandle) -> None:
        """Put an adapter into a slot. Raises AdapterUnsupported and OutOfMemory."""
        assert isinstance(adapter, CachedAdapter)
        with _memory_errors(), torch.inference_mode():
            self._slots.load(slot, adapter)

    def start(self, sequence: Sequence) -> None:
        """A sequence was given its row and its blocks."""
        row, prompt = sequence.row, sequence.prompt
        with _memory_errors(), torch.inference_mode():
            blocks = torch.tensor(sequence.blocks, dtype=torch.int32)
            self._block_tables_RP[row, : len(blocks)] = on_device(blocks, self._device.torch)
            if not self._uses_kernels:
                self._cache.clear(sequence.blocks[sequence.prefilled_count // BLOCK_TOKENS :])
            self._sampler.set_row(row, prompt.sampling, prompt.seed, prompt.token_ids)
            self._set_row(sequence, sequence.prefilled_count)

    def prefill(self, prefills: list[Prefill]) -> None:
        """Read pieces of prompts. What it raises concerns these only: OutOfMemory."""
        pieces = [
            attention.Piece(one.sequence.row, one.sequence.prefilled_count, one.token_count)
            for one in prefills
        ]
        columns = [
            (token, piece.row, position, prefill.sequence.adapter_slot)
            for piece, prefill in zip(pieces, prefills, strict=True)
            for position, token in enumerate(
                prefill.sequence.prompt.token_ids[piece.start : piece.end], start=piece.start
            )
        ]
        with _memory_errors(), torch.inference_mode():
            self._drop_old_graphs()
            inputs_4N = torch.tensor(columns).T.contiguous()
            used = {one.sequence.adapter_slot for one in prefills}
            if not self._replay_prompts(inputs_4N, pieces, used):
                ids_N, rows_N, positions_N, slots_N = on_device(inputs_4N, self._device.torch)
                self._slots.select(used, slots_N)
                self._forward(ids_N, self._step(rows_N, positions_N, pieces))
            for piece, prefill in zip(pieces, prefills, strict=True):
                self._set_row(prefill.sequence, piece.end)

    def decode(self, running: list[Sequence]) -> DeviceTokens:
        """One token for each row; where the prompt is not read yet it means nothing. Raises OutOfMemory."""
        batch = len(running)
        used = {one.adapter_slot for one in running}
        with _memory_errors(), torch.inference_mode():
            self._drop_old_graphs()
            if self._decode_graphs is None:
                self._slots.select(used, self._adapter_slots_R[:batch])
                logits_BV = self._forward_rows(batch)
            else:
                self._slots.select(used, self._adapter_slots_R)
                logits_BV = self._decode_graphs.run(batch, self._slots.selection is not None)[:batch]
            self._sampler.set_masks(running)
            active_B = self._active_R[:batch]
            sampled = self._sampler.sample(logits_BV, 0, active_B.bool())
            # Rows whose prompt is not read run along, but stay where they are.
            self._tokens_R[:batch] = torch.where(active_B > 0, sampled.tokens_B, self._tokens_R[:batch])
            self._positions_R[:batch] += active_B
            for one in running:
                self._positions[one.row] += one.is_prefilled
            return DeviceTokens(sampled)

    def move(self, move: Move) -> None:
        """A sequence goes on in another row."""
        with torch.inference_mode():
            self._sampler.move(move.source, move.target)
            self._state_4R[:, move.target] = self._state_4R[:, move.source]
            self._block_tables_RP[move.target] = self._block_tables_RP[move.source]
            self._positions[move.target] = self._positions[move.source]

    def free(self, row: int) -> None:
        """Nobody is in this row any more; what it still computes goes to the block that nobody reads."""
        with torch.inference_mode():
            self._state_4R[:, row].zero_()
            self._block_tables_RP[row].zero_()
            self._positions[row] = 0

    def is_usable(self) -> bool:
        """Whether the device still answers; after some errors of a GPU nothing but a new process helps."""
        try:
            return torch.ones(1, device=self._device.torch).item() == 1
        except RuntimeError:
            return False

    def close(self) -> None:
        """Give all memory back."""
        # A graph holds a method of this runner, which would keep everything else.
        self._decode_graphs = self._prefill_graphs = None
        del self._model, self._cache, self._slots, self._sampler
        gc.collect()
        if self._device.is_cuda:
            torch.cuda.empty_cache()

    def _set_row(self, sequence: Sequence, read_count: int) -> None:
        """A row stands in the midst of its prompt, or all but the last token is read and it makes tokens."""
        row, token_ids = sequence.row, sequence.prompt.token_ids
        position = min(read_count, len(token_ids) - 1)
        is_active = position == len(token_ids) - 1
        state = torch.tensor((token_ids[-1], position, sequence.adapter_slot, is_active), dtype=torch.long)
        self._state_4R[:, row] = on_device(state, self._device.torch)
        self._positions[row] = position

    def _drop_old_graphs(self) -> None:
        """A recording is of no use once adapters lie elsewhere."""
        if self._graphs_layout == self._slots.layout_version:
            return
        self._graphs_layout = self._slots.layout_version
        for graphs in (self._decode_graphs, self._prefill_graphs):
            if graphs is not None:
                graphs.forget()

    def _replay_prompts(self, inputs_4N: torch.Tensor, pieces: list[attention.Piece], used: set[int]) -> bool:
        """Read prompts by a recording, if there is one that they fit."""
        count = inputs_4N.shape[1]
        size = self._prefill_graphs.size(count) if self._prefill_graphs is not None else None
        if size is None:
            return False
        assert self._prefill_graphs is not None
        tiles = attention.prompt_tiles(pieces)
        if len(tiles) > _tile_count(size):
            return False
        padding = torch.tensor([[0], [self._each_R.shape[0]], [0], [0]])
        padded_4N = torch.cat([inputs_4N, padding.expand(4, size - count)], 1)
        self._prompt_4N[:, :size] = on_device(padded_4N, self._device.torch)
        empty = torch.zeros(_tile_count(size) - len(tiles), 4, dtype=torch.int32)
        self._tiles_M4[: _tile_count(size)] = on_device(torch.cat([tiles, empty]), self._device.torch)
        self._slots.select(used, self._prompt_4N[3])
        self._prefill_graphs.run(count, self._slots.selection is not None)
        return True

    def _forward_prompts(self, size: int) -> torch.Tensor:
        """Read the prompts that stand in `_prompt_4N`."""
        ids_N, rows_N, positions_N, _ = self._prompt_4N[:, :size]
        step = attention.Step(
            self._cache,
            self._block_tables_RP,
            rows_N,
            positions_N,
            uses_kernels=True,
            tiles_M4=self._tiles_M4[: _tile_count(size)],
        )
        return self._forward(ids_N, step)

    def _forward_rows(self, batch: int) -> torch.Tensor:
        """Logits of the first rows, from what stands in the rows' state."""
        step = self._step(self._each_R[:batch], self._positions_R[:batch], [])
        return self._forward(self._tokens_R[:batch], step)

    def _step(
        self, rows_N: torch.Tensor, positions_N: torch.Tensor, pieces: list[attention.Piece]
    ) -> attention.Step:
        step = attention.Step(self._cache, self._block_tables_RP, rows_N, positions_N, pieces)
        if self._uses_kernels:
            step.use_kernels()
        elif not pieces:
            step.key_count = max(self._positions[: len(rows_N)]) + 1
        return step

    def _forward(self, ids_N: torch.Tensor, step: attention.Step) -> torch.Tensor:
        """Logits of every token of a decode step. Of prompts only keys and values are wanted."""
        self._slots.begin(len(ids_N))
        model = self._model.base_model if step.reads_prompts else self._model
        output = model(input_ids=ids_N[None], position_ids=step.positions_N[None], use_cache=False, step=step)
        logits_NV: torch.Tensor = output[0][0]
        return logits_NV


def _tile_count(tokens: int) -> int:
    """Tiles that a recording has room for: short prompts have one each, whatever their length."""
    return tokens // 64 + 64


def _on_host(sampled: SampledBatch) -> SampledBatch:
    """Under way to the host: pinned memory, filled once the stream gets there."""
    logprobs = sampled.logprobs
    if logprobs is not None:
        logprobs = Logprobs(
            _copy(logprobs.chosen_B), _copy(logprobs.top_values_BK), _copy(logprobs.top_ids_BK)
        )
    return SampledBatch(_copy(sampled.tokens_B), logprobs, sampled.top_counts)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Memory that ran out, as the error that has words for it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory("The GPU has no memory left for this request.") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise OutOfMemory("The machine has no memory left for this request.") from error
