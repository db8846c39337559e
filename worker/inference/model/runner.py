"""Runs the base model: reads prompts in chunks and samples one token for every row of the batch.

`support.py` finds how: by worker/decoder for families like Llama's, else by the model's own code with other
attention and linear layers; on a GPU with kernels for what is small. Only `DeviceTokens.to_host` waits for
the device. Knows nothing of queues, text or HTTP.
Shape letters: R all rows, B rows of a step, N tokens of a step, P blocks of a row, V vocabulary, H hidden
size.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from worker.inference.adapters.cache import CachedAdapter
from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.adapters.slots import SlotSwap
from worker.inference.batching.block_manager import BLOCK_TOKENS, block_count
from worker.inference.batching.drafts import Draft
from worker.inference.batching.model_batch import Capacity, Move, Prefill
from worker.inference.batching.prompt import AdapterHandle
from worker.inference.batching.prompt_scores import ChunkRead
from worker.inference.batching.sequence import Sequence
from worker.inference.device_errors import is_usable, memory_errors
from worker.inference.model import attention, support
from worker.inference.model.device_tokens import DeviceTokens
from worker.inference.model.forward import PassContext
from worker.inference.model.kv_cache import KVCache
from worker.inference.model.prefill import TOKENS_PER_STEP, PrefillForward
from worker.inference.model.step_graphs import StepGraphs, batch_sizes
from worker.inference.model.verifying import MAX_POSITIONS, VerifyingForward
from worker.inference.sampling.drafted import DraftedPositions
from worker.inference.sampling.sampler import Sampler, score_tokens
from worker.models.device import Device, free_memory_bytes, on_device

MAX_ROWS = {"cpu": 32, "cuda": 128}
# Share of the memory that is free once the model is loaded; a training job and adapters need some too.
CACHE_SHARE_OF_FREE_MEMORY = {"cpu": 0.25, "cuda": 0.5}
# The rank to allocate for in advance. The first adapter of a higher rank takes longer to load.
_EXPECTED_RANK = 16
_CHECKED_POSITIONS = 4


@dataclass(frozen=True)
class _ReadPrompts:
    """Sequences whose prompts were read to the end just now, and their last hidden states, one row each."""

    sequences: list[Sequence]
    hidden_BH: torch.Tensor


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
        self._path = prepared.path
        self._device = device
        self._uses_kernels = prepared.uses_kernels
        embedding = model.get_input_embeddings().weight
        assert isinstance(embedding, torch.Tensor)
        self._embedding_count = embedding.shape[0]
        self._vocabulary_size = vocabulary_size = model.get_output_embeddings().weight.shape[0]
        context_length = support.context_length(model)
        share = cache_share or CACHE_SHARE_OF_FREE_MEMORY[device.kind]
        blocks = int(free_memory_bytes(device) * share / (prepared.bytes_per_token * BLOCK_TOKENS))
        self.capacity = Capacity(
            max_rows=max_rows,
            block_count=min(blocks, max_rows * block_count(context_length) + 1),
            context_length=context_length,
            prefill_tokens_per_step=TOKENS_PER_STEP[device.kind],
            verified_positions=MAX_POSITIONS,
            draftable_ids=min(embedding.shape[0], vocabulary_size),
        )
        self._cache = KVCache(self.capacity.block_count)
        self._slots = LoraSlots(
            model,
            prepared.path.groups,
            count=adapter_slot_count,
            dtype=model.dtype,
            uses_kernels=self._uses_kernels,
        )
        self._sampler = Sampler(
            max_rows=max_rows,
            vocabulary_size=vocabulary_size,
            device=device.torch,
            uses_kernels=self._uses_kernels,
        )
        # Last token, position, adapter slot and activity in one tensor, so that one copy sets a row.
        self._state_4R = torch.zeros(4, max_rows, dtype=torch.long, device=device.torch)
        self._tokens_R, self._positions_R, self._adapter_slots_R, self._active_R = self._state_4R
        self._row_indices_R = torch.arange(max_rows, device=device.torch)
        # One row more than there are sequences, for the padding tokens of a captured prefill.
        self._block_tables_RP = torch.zeros(
            max_rows + 1, block_count(self.capacity.max_length), dtype=torch.int32, device=device.torch
        )
        self._read_prompts: _ReadPrompts | None = None
        self._graphs_layout = self._slots.layout_version
        uses_graphs = self._uses_kernels and uses_graphs
        self._decode_graphs = StepGraphs(self._forward_rows, batch_sizes(max_rows)) if uses_graphs else None
        context = PassContext(
            self._forward,
            self._cache,
            self._block_tables_RP,
            self._slots,
            uses_kernels=self._uses_kernels,
            uses_graphs=uses_graphs,
        )
        self._prefilling = PrefillForward(context)
        self._verifying = VerifyingForward(context)

    def warm_up(self) -> None:
        """Allocate adapter slots and capture graphs, before the first request. Raises OutOfMemory.

        A capture takes as long as several steps, so only some are made here. Decode steps of every size:
        without adapters, with one slot, and with all. Prefills: without adapters, and with all slots, which
        cost them less. So every step has a graph; those for the numbers of slots between are captured where
        steps go on needing them (step_graphs.py). Graphs of verifying steps are captured at their first
        use: few models ever need them.
        """
        if self._decode_graphs is not None:
            self._capture(self._decode_graphs)
        # After the adapters' tensors were allocated, which captured graphs refer to.
        if self._uses_kernels:
            self.check_verifying()

    def _capture(self, decode_graphs: StepGraphs) -> None:
        with memory_errors(), torch.inference_mode():
            self._slots.prepare(_EXPECTED_RANK)
            self._graphs_layout = self._slots.layout_version
            self._prefilling.capture_all()
            for slot_count in (self._slots.count, 1, 0):
                self._slots.select({slot_count}, self._adapter_slots_R)
                decode_graphs.capture_all(slot_count)
            self._compile_sampling(decode_graphs.run(1, 0))

    def _compile_sampling(self, logits_1V: torch.Tensor) -> None:
        """Compile what chooses greedy tokens of logits like these, and what rows advance by."""
        sampled = self._sampler.sample(logits_1V, 0, self._active_R[:1])
        self._advance(slice(1), sampled.tokens_B)

    def check_verifying(self) -> None:
        """Verify no drafted tokens where their logits would differ from those of plain steps.

        To be called before the first request. Raises OutOfMemory.
        """
        ids_N = torch.arange(1, 1 + _CHECKED_POSITIONS) % self._embedding_count
        with memory_errors(), torch.inference_mode():
            self._block_tables_RP[0, 0] = 1
            self._slots.select(set(), self._adapter_slots_R)
            plain = []
            for position, token in enumerate(ids_N.tolist()):
                self._tokens_R[0], self._positions_R[0] = token, position
                plain.append(self._forward_rows(1, key_count=position + 1).float())
            tolerance = support.TOLERANCE[self._slots.dtype]
            if not self._verifying.is_equal_to(torch.cat(plain), ids_N, tolerance):
                self.capacity = replace(self.capacity, verified_positions=0)
        self.free(0)

    def load_adapter(self, slot: int, adapter: AdapterHandle) -> None:
        """Copy an adapter into a slot. Raises AdapterUnsupported and OutOfMemory."""
        assert isinstance(adapter, CachedAdapter)
        with memory_errors(), torch.inference_mode():
            self._slots.load(slot, adapter)

    def swap_slots(self, swap: SlotSwap) -> bool:
        """Exchange the adapters of two slots; rows with `source` get `target`, which no row has.

        Returns whether that is possible. Raises OutOfMemory before anything has changed.
        """
        with memory_errors(), torch.inference_mode():
            is_moved_R = self._adapter_slots_R == swap.source
            if not self._slots.swap(swap.source, swap.target):
                return False
            self._adapter_slots_R.masked_fill_(is_moved_R, swap.target)
            return True

    def start(self, sequence: Sequence) -> None:
        """Set the row of a sequence that was given a row and blocks.

        Raises InvalidRequest for tokens that the base model does not have, and OutOfMemory.
        """
        row, prompt = sequence.row, sequence.prompt
        # A token of the prompt that is scored has a logit, too.
        prompt.check_ids(
            min(self._embedding_count, self._vocabulary_size) if prompt.is_scored else self._embedding_count
        )
        with memory_errors(), torch.inference_mode():
            blocks = torch.tensor(sequence.blocks, dtype=torch.int32)
            self._block_tables_RP[row, : len(blocks)] = on_device(blocks, self._device.torch)
            if not self._uses_kernels:
                self._cache.clear(sequence.blocks[sequence.prefilled_count // BLOCK_TOKENS :])
            self._sampler.set_row(row, prompt.sampling, prompt.seed, prompt.token_ids)
            self._set_row(sequence, sequence.prefilled_count)

    def prefill(self, prefills: list[Prefill]) -> list[ChunkRead]:
        """Read chunks of prompts. Raises OutOfMemory, which concerns only these prompts.

        Returns the sum [H] of the last hidden states of each chunk of a text whose embedding is wanted, and
        the log-probabilities of the next tokens where those are. Prompts that need logits are read apart.
        """
        self._read_prompts = None
        read: dict[int, ChunkRead] = {}
        for is_scored in (False, True):
            group = [one for one in prefills if one.sequence.prompt.is_scored == is_scored]
            if group:
                chunks = self._prefill(group, is_scored=is_scored)
                read |= {one.sequence.row: chunk for one, chunk in zip(group, chunks, strict=True)}
        return [read[one.sequence.row] for one in prefills]

    def _prefill(self, prefills: list[Prefill], *, is_scored: bool) -> list[ChunkRead]:
        ending = [] if is_scored else self._ending(prefills)
        chunks = [
            attention.Chunk(
                one.sequence.row, one.sequence.prefilled_count, one.token_count + (one.sequence in ending)
            )
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
            compute = self._prefilling.logits if is_scored else self._prefilling.states
            output_NX = compute(inputs_4N, chunks, used)
            for chunk, prefill in zip(chunks, prefills, strict=True):
                self._set_row(prefill.sequence, chunk.end)
            outputs = output_NX[: len(columns)].split([chunk.count for chunk in chunks])
            if ending:
                ends = zip(prefills, accumulate(chunk.count for chunk in chunks), strict=True)
                last_B = torch.tensor([end - 1 for one, end in ends if one.sequence in ending])
                self._read_prompts = _ReadPrompts(ending, output_NX[on_device(last_B, self._device.torch)])
            return [self._chunk_read(*pair, self._device) for pair in zip(prefills, outputs, strict=True)]

    @staticmethod
    def _chunk_read(prefill: Prefill, output_NX: torch.Tensor, device: Device) -> ChunkRead:
        """What the output of the model gives for a chunk: hidden states, or logits where it is scored."""
        prompt = prefill.sequence.prompt
        if prompt.embeds:
            return ChunkRead(hidden_sum=output_NX.sum(0, dtype=torch.float32))
        if not prompt.is_scored:
            return ChunkRead()
        first = prefill.sequence.prefilled_count + 1
        targets_N = torch.tensor(prompt.token_ids[first : first + prefill.token_count])
        scores = score_tokens(output_NX, on_device(targets_N, device.torch), prompt.prompt_logprobs or 0)
        return ChunkRead(scores=scores)

    def _ending(self, prefills: list[Prefill]) -> list[Sequence]:
        """The sequences whose prompts end with these chunks, where reading their last tokens costs nothing.

        Then no decode step is needed for their first tokens (`_decode_read`).
        """
        ending = [
            one.sequence
            for one in prefills
            if one.sequence.prompt.makes_tokens
            and one.sequence.prefilled_count + one.token_count == one.sequence.prefill_length
        ]
        count = sum(one.token_count for one in prefills)
        can_read = self._path.has_logits_alone and self._prefilling.has_room(count, len(ending))
        return ending if can_read else []

    def decode(self, running: list[Sequence]) -> DeviceTokens:
        """Sample a token for each row. The token of a row whose prompt is not read yet is undefined, or none.

        Raises OutOfMemory. After an error no row has advanced.
        """
        read, self._read_prompts = self._read_prompts, None
        ready = [one for one in running if one.is_prefilled]
        if read is not None and read.sequences == ready == running[: len(ready)]:
            return self._decode_read(read)
        count = len(running)
        used = {one.adapter_slot for one in running}
        with memory_errors(), torch.inference_mode():
            self._drop_stale_graphs()
            if self._decode_graphs is None:
                self._slots.select(used, self._adapter_slots_R[:count])
                logits_BV = self._forward_rows(count, key_count=self._key_count(running))
            else:
                self._slots.select(used, self._adapter_slots_R)
                logits_BV = self._decode_graphs.run(count, self._slots.slot_count)[:count]
            return self._sample(logits_BV, running, slice(count))

    def _decode_read(self, read: _ReadPrompts) -> DeviceTokens:
        """Sample the first token of the first rows, whose prompts were read to the end."""
        rows = slice(len(read.sequences))
        with memory_errors(), torch.inference_mode():
            self._slots.select({one.adapter_slot for one in read.sequences}, self._adapter_slots_R[rows])
            self._slots.begin(len(read.sequences))
            return self._sample(self._path.logits(read.hidden_BH), read.sequences, rows)

    def decode_alone(self, sequence: Sequence) -> DeviceTokens:
        """Sample a token for one row, after `decode` failed for its batch. Raises OutOfMemory."""
        rows = slice(sequence.row, sequence.row + 1)
        with memory_errors(), torch.inference_mode():
            self._slots.select({sequence.adapter_slot}, self._adapter_slots_R[rows])
            logits_1V = self._forward_rows(1, sequence.row, key_count=self._key_count([sequence]))
            return self._sample(logits_1V, [sequence], rows)

    def verify(self, running: list[Sequence], drafts: Mapping[Sequence, Draft]) -> DeviceTokens:
        """Sample the next token of each row whose prompt is read, and one after each of its drafted tokens.

        The host must know all tokens of these rows. A row advances by the tokens up to the first that was not
        drafted. Raises OutOfMemory; after an error no row has advanced.
        """
        self._read_prompts = None
        ready = [one for one in running if one.is_prefilled]
        token_ids = [drafts[one].token_ids if one in drafts else () for one in ready]
        chunks = [
            attention.Chunk(one.row, one.length - 1, len(ids) + 1)
            for one, ids in zip(ready, token_ids, strict=True)
        ]
        columns = [
            (token, chunk.row, position, one.adapter_slot)
            for one, chunk, ids in zip(ready, chunks, token_ids, strict=True)
            for position, token in enumerate((one.last_token_id, *ids), start=chunk.start)
        ]
        with memory_errors(), torch.inference_mode():
            self._drop_stale_graphs()
            drafted = DraftedPositions([one.row for one in ready], token_ids, self._device.torch)
            used = {one.adapter_slot for one in ready}
            logits_NV = self._verifying.logits(torch.tensor(columns).T.contiguous(), chunks, used)
            verified = self._sampler.verify(logits_NV, drafted, _masks(ready, drafts))
            tokens = DeviceTokens(verified.sampled)
            self._tokens_R[drafted.rows_B] = verified.last_B.clamp(0, self._embedding_count - 1)
            self._positions_R.index_add_(0, drafted.rows_B, verified.accepted_B + 1)
            return tokens

    def move(self, move: Move) -> None:
        """Move a sequence to another row."""
        with torch.inference_mode():
            self._sampler.move(move.source, move.target)
            self._state_4R[:, move.target] = self._state_4R[:, move.source]
            self._block_tables_RP[move.target] = self._block_tables_RP[move.source]

    def free(self, row: int) -> None:
        """Reset a row without a sequence: its writes go to block 0, which is never read."""
        with torch.inference_mode():
            self._state_4R[:, row].zero_()
            self._block_tables_RP[row].zero_()

    def is_usable(self) -> bool:
        """Whether the device still works. After some errors of a GPU only a new process can use it."""
        return is_usable(self._device)

    def close(self) -> None:
        """Free all memory."""
        # Graphs refer to methods of this runner, which would keep its tensors alive.
        self._decode_graphs = None
        del self._prefilling, self._verifying, self._path, self._cache, self._slots, self._sampler
        gc.collect()
        if self._device.is_cuda:
            torch.cuda.empty_cache()

    def _set_row(self, sequence: Sequence, read_count: int) -> None:
        """Set a row's state after `read_count` prompt tokens. It is active once all but the last are read."""
        row, token_ids = sequence.row, sequence.prompt.token_ids
        position = min(read_count, len(token_ids) - 1)
        is_active = position == len(token_ids) - 1 and sequence.prompt.makes_tokens
        state = torch.tensor((token_ids[-1], position, sequence.adapter_slot, is_active), dtype=torch.long)
        self._state_4R[:, row] = on_device(state, self._device.torch)

    def _sample(self, logits_BV: torch.Tensor, sequences: list[Sequence], rows: slice) -> DeviceTokens:
        """Sample the tokens of these rows, and make them the inputs of the next step."""
        self._sampler.set_masks(sequences)
        sampled = self._sampler.sample(logits_BV, sequences[0].row, self._active_R[rows])
        tokens = DeviceTokens(sampled)
        # The last that can fail: after an error no row has advanced.
        self._advance(rows, sampled.tokens_B)
        return tokens

    def _advance(self, rows: slice, tokens_B: torch.Tensor) -> None:
        """Make the tokens of active rows, whose prompts are read, the inputs of the next step."""
        active_B = self._active_R[rows]
        # The next step may be launched before the host has seen NO_TOKEN, which is no id.
        if self._uses_kernels:
            from worker.kernels.serving import greedy

            state = (self._tokens_R[rows], self._positions_R[rows])
            greedy.advance(*state, tokens_B, active_B, self._embedding_count)
            return
        ids_B = tokens_B.clamp(0, self._embedding_count - 1)
        self._tokens_R[rows] = torch.where(active_B > 0, ids_B, self._tokens_R[rows])
        self._positions_R[rows] += active_B

    def _drop_stale_graphs(self) -> None:
        """Drop captured graphs once the adapters' tensors were reallocated."""
        if self._graphs_layout == self._slots.layout_version:
            return
        self._graphs_layout = self._slots.layout_version
        if self._decode_graphs is not None:
            self._decode_graphs.discard()
        self._prefilling.discard_graphs()
        self._verifying.discard_graphs()

    def _key_count(self, sequences: list[Sequence]) -> int:
        """At least the number of keys of the longest row in the next step; one token may be in flight."""
        longest = max(one.length if one.is_prefilled else one.prefilled_count for one in sequences)
        return min(longest + 1, self.capacity.max_length)

    def _forward_rows(self, count: int, first_row: int = 0, key_count: int = 0) -> torch.Tensor:
        """Logits of the next token of `count` rows. `key_count`: that of the longest; kernels need none."""
        rows = slice(first_row, first_row + count)
        tables_BP, indices_B = self._block_tables_RP[rows], self._row_indices_R[:count]
        step = attention.Step(self._cache, tables_BP, indices_B, self._positions_R[rows])
        if self._uses_kernels:
            step.use_kernels()
        else:
            step.key_count = key_count
        return self._forward(self._tokens_R[rows], step)

    def _forward(
        self, ids_N: torch.Tensor, step: attention.Step, *, has_logits: bool = False
    ) -> torch.Tensor:
        """Logits [N, V] of a decode step. For a prefill, the last hidden states [N, H]: no token is made.

        `has_logits`: logits for a prefill, too.
        """
        self._slots.begin(len(ids_N))
        return self._path(ids_N, step, has_logits=has_logits or not step.is_prefill)


def _masks(ready: list[Sequence], drafts: Mapping[Sequence, Draft]) -> dict[int, torch.Tensor]:
    """The masks of grammars by index of the position, where there are any."""
    found, first = {}, 0
    for one in ready:
        draft = drafts.get(one, Draft())
        only = one.allowed_tokens()
        allowed = draft.allowed or ([] if only is None else [only])
        for index, allowed_W in enumerate(allowed, start=first):
            found[index] = torch.from_numpy(allowed_W)
        first += len(draft.token_ids) + 1
    return found
