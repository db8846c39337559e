"""Runs the base model: reads prompts in chunks and samples one token for every row of the batch.

`support.py` finds how: by worker/decoder for families like Llama's, else by the model's own code with other
attention and linear layers; on a GPU with kernels for what is small. Only `DeviceTokens.to_host` waits for
the device. Knows nothing of queues, text or HTTP.
Shape letters: B rows of a step, N tokens of a step, V vocabulary, H hidden size.
"""

import gc
from collections.abc import Mapping
from dataclasses import replace

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
from worker.inference.model.kv_cache import KVCache
from worker.inference.model.passes.forward import ChunkTokens, PassContext
from worker.inference.model.passes.prefill import TOKENS_PER_STEP, PrefillForward
from worker.inference.model.passes.prompt_reader import PromptReader
from worker.inference.model.passes.verifying import MAX_POSITIONS, VerifyingForward
from worker.inference.model.rows import Rows
from worker.inference.model.step_graphs import StepGraphs, batch_sizes
from worker.inference.sampling.drafted import DraftedPositions
from worker.inference.sampling.sampler import Sampler
from worker.models.device import Device, free_memory_bytes

MAX_ROWS = {"cpu": 32, "cuda": 128}
# Share of the memory that is free once the model is loaded; a training job and adapters need some too.
CACHE_SHARE_OF_FREE_MEMORY = {"cpu": 0.25, "cuda": 0.5}
# The rank to allocate for in advance. The first adapter of a higher rank takes longer to load.
_EXPECTED_RANK = 16
_CHECKED_POSITIONS = 4


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
        self._rows = Rows(self.capacity, self._embedding_count, device.torch, uses_kernels=self._uses_kernels)
        self._graphs_layout = self._slots.layout_version
        uses_graphs = self._uses_kernels and uses_graphs
        self._decode_graphs = StepGraphs(self._forward_rows, batch_sizes(max_rows)) if uses_graphs else None
        context = PassContext(
            self._forward,
            self._cache,
            self._rows,
            self._slots,
            uses_kernels=self._uses_kernels,
            uses_graphs=uses_graphs,
        )
        self._prefilling = PrefillForward(context)
        self._reader = PromptReader(
            self._prefilling, self._rows, has_logits_alone=prepared.path.has_logits_alone
        )
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
                self._slots.select({slot_count}, self._rows.adapter_slots_R)
                decode_graphs.capture_all(slot_count)
            self._compile_sampling(decode_graphs.run(1, 0))

    def _compile_sampling(self, logits_1V: torch.Tensor) -> None:
        """Compile what chooses greedy tokens of logits like these, and what rows advance by."""
        sampled = self._sampler.sample(logits_1V, 0, self._rows.active_R[:1])
        self._rows.advance(slice(1), sampled.tokens_B)

    def check_verifying(self) -> None:
        """Verify no drafted tokens where their logits would differ from those of plain steps.

        To be called before the first request. Raises OutOfMemory.
        """
        ids_N = torch.arange(1, 1 + _CHECKED_POSITIONS) % self._embedding_count
        with memory_errors(), torch.inference_mode():
            self._rows.set_blocks(0, [1])
            self._rows.write()
            self._slots.select(set(), self._rows.adapter_slots_R)
            plain = []
            for position, token in enumerate(ids_N.tolist()):
                self._rows.tokens_R[0], self._rows.positions_R[0] = token, position
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
            self._rows.write()
            is_moved_R = self._rows.adapter_slots_R == swap.source
            if not self._slots.swap(swap.source, swap.target):
                return False
            self._rows.adapter_slots_R.masked_fill_(is_moved_R, swap.target)
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
            self._rows.set_blocks(row, sequence.blocks)
            if not self._uses_kernels:
                self._cache.clear(sequence.blocks[sequence.prefilled_count // BLOCK_TOKENS :])
            self._sampler.set_row(row, prompt.sampling, prompt.seed, prompt.token_ids)
            self._rows.set(sequence, sequence.prefilled_count)

    def prefill(self, prefills: list[Prefill], ready: list[Sequence]) -> list[ChunkRead]:
        """Read chunks of prompts. Raises OutOfMemory.

        `ready`: the sequences whose prompts are read, or none. `decode` needs no pass of its own where
        this one has room for their last tokens, and those of the prompts that end here (decision 71).
        Returns the sum [H] of the last hidden states of each chunk of a text whose embedding is wanted, and
        the log-probabilities of the next tokens where those are.
        """
        with memory_errors(), torch.inference_mode():
            self._drop_stale_graphs()
            return self._reader.read(prefills, ready)

    def decode(self, running: list[Sequence]) -> DeviceTokens:
        """Sample a token for each row. The token of a row whose prompt is not read yet is undefined, or none.

        Raises OutOfMemory. After an error no row has advanced.
        """
        count = len(running)
        used = {one.adapter_slot for one in running}
        with memory_errors(), torch.inference_mode():
            states_BH = self._reader.take_last_states(running)
            self._rows.write()
            self._drop_stale_graphs()
            if states_BH is not None:
                count = len(states_BH)
                self._slots.select(used, self._rows.adapter_slots_R[:count])
                self._slots.begin(count)
                logits_BV = self._path.logits(states_BH)
            elif self._decode_graphs is None:
                self._slots.select(used, self._rows.adapter_slots_R[:count])
                logits_BV = self._forward_rows(count, key_count=self._key_count(running))
            else:
                self._slots.select(used, self._rows.adapter_slots_R)
                logits_BV = self._decode_graphs.run(count, self._slots.slot_count)[:count]
            return self._sample(logits_BV, running[:count], slice(count))

    def decode_alone(self, sequence: Sequence) -> DeviceTokens:
        """Sample a token for one row, after `decode` failed for its batch. Raises OutOfMemory."""
        rows = slice(sequence.row, sequence.row + 1)
        with memory_errors(), torch.inference_mode():
            self._rows.write()
            self._slots.select({sequence.adapter_slot}, self._rows.adapter_slots_R[rows])
            logits_1V = self._forward_rows(1, sequence.row, key_count=self._key_count([sequence]))
            return self._sample(logits_1V, [sequence], rows)

    def verify(self, running: list[Sequence], drafts: Mapping[Sequence, Draft]) -> DeviceTokens:
        """Sample the next token of each row whose prompt is read, and one after each of its drafted tokens.

        The host must know all tokens of these rows. A row advances by the tokens up to the first that was not
        drafted. Raises OutOfMemory; after an error no row has advanced.
        """
        self._reader.forget_last_states()
        ready = [one for one in running if one.is_prefilled]
        token_ids = [drafts[one].token_ids if one in drafts else () for one in ready]
        chunks = [
            ChunkTokens(
                attention.Chunk(one.row, one.length - 1, len(ids) + 1),
                (one.last_token_id, *ids),
                one.adapter_slot,
            )
            for one, ids in zip(ready, token_ids, strict=True)
        ]
        with memory_errors(), torch.inference_mode():
            self._rows.write()
            self._drop_stale_graphs()
            drafted = DraftedPositions([one.row for one in ready], token_ids, self._device.torch)
            logits_NV = self._verifying.logits(chunks)
            verified = self._sampler.verify(logits_NV, drafted, _masks(ready, drafts))
            tokens = DeviceTokens(verified.sampled)
            self._rows.advance_verified(drafted.rows_B, verified.last_B, verified.accepted_B + 1)
            return tokens

    def move(self, move: Move) -> None:
        """Move a sequence to another row."""
        with torch.inference_mode():
            self._sampler.move(move.source, move.target)
            self._rows.move(move)

    def free(self, row: int) -> None:
        """Reset a row without a sequence: its writes go to block 0, which is never read."""
        with torch.inference_mode():
            self._rows.free(row)

    def is_usable(self) -> bool:
        """Whether the device still works. After some errors of a GPU only a new process can use it."""
        return is_usable(self._device)

    def close(self) -> None:
        """Free all memory."""
        # Graphs refer to methods of this runner, which would keep its tensors alive.
        self._decode_graphs = None
        del (
            self._prefilling,
            self._reader,
            self._verifying,
            self._path,
            self._cache,
            self._slots,
            self._sampler,
        )
        gc.collect()
        if self._device.is_cuda:
            torch.cuda.empty_cache()

    def _sample(self, logits_BV: torch.Tensor, sequences: list[Sequence], rows: slice) -> DeviceTokens:
        """Sample the tokens of these rows, and make them the inputs of the next step."""
        self._sampler.set_masks(sequences)
        sampled = self._sampler.sample(logits_BV, sequences[0].row, self._rows.active_R[rows])
        tokens = DeviceTokens(sampled)
        # The last that can fail: after an error no row has advanced.
        self._rows.advance(rows, sampled.tokens_B)
        return tokens

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
        tables_BP, indices_B = self._rows.block_tables_RP[rows], self._rows.indices_R[:count]
        step = attention.Step(self._cache, tables_BP, indices_B, self._rows.positions_R[rows])
        if self._uses_kernels:
            step.use_kernels()
        else:
            step.key_count = key_count
        return self._forward(self._rows.tokens_R[rows], step)

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
