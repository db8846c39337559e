"""Runs a base model and adapters that the paged engine can't compute: transformers' model, PEFT's adapters.

Each running sequence has a cache of its own and goes through the model alone, as in `generate`: its texts are
those of transformers and PEFT, whatever else is running. The sequences take turns, a token each, and share
the sampler with the paged engine. A prompt is read whole at the first step of its sequence.
Shape letters: B sequences of a step, V vocabulary.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from worker.inference.adapters.cache import CachedAdapter
from worker.inference.adapters.slots import SlotSwap
from worker.inference.batching.block_manager import block_count
from worker.inference.batching.drafts import Draft
from worker.inference.batching.model_batch import Capacity, Move, Prefill
from worker.inference.batching.prompt import AdapterHandle
from worker.inference.batching.prompt_scores import ChunkRead
from worker.inference.batching.sequence import Sequence
from worker.inference.device_errors import is_usable, memory_errors
from worker.inference.general.adapters import PeftFolder, put_on
from worker.inference.general.generation import (
    TextSteps,
    score_text,
    sum_hidden_states,
    use_plain_generation,
)
from worker.inference.sampling.sampler import SampledBatch, Sampler
from worker.models.device import Device, free_memory_bytes

MAX_ROWS = {"cpu": 8, "cuda": 16}
# Of models that name no limit.
_CONTEXT_LENGTH = 2048
_PROBE_TOKENS = 16


@dataclass
class _Row:
    """A running sequence: its cache, the logits of its next token once computed, and its last token.

    There are no steps after an error in the middle of one: some layers' caches had the token, and others not.
    """

    steps: TextSteps | None
    logits_1V: torch.Tensor | None = None
    token_1: torch.Tensor | None = None


class GeneralRunner:
    """One base model on the device, with a copy of its modules for each adapter. Not thread-safe."""

    # Each step waits for its tokens.
    is_asynchronous = False

    def __init__(
        self, model: PreTrainedModel, device: Device, *, max_rows: int | None = None, cache_share: float
    ) -> None:
        use_plain_generation(model)
        self.weight_bits = 4 if getattr(model, "is_loaded_in_4bit", False) else 8 * model.dtype.itemsize
        self._device = device
        embeddings = cast(nn.Embedding, model.get_input_embeddings())
        self._embedding_count = embeddings.weight.shape[0]
        # By slot of the adapter; 0 is the base model alone.
        self._models = {0: model}
        self._rows: dict[int, _Row] = {}
        max_rows = max_rows or MAX_ROWS[device.kind]
        config = model.config.get_text_config()
        context_length = int(getattr(config, "max_position_embeddings", None) or _CONTEXT_LENGTH)
        bytes_per_token, vocabulary_size = _measure(model)
        tokens = max_rows * context_length
        if bytes_per_token:
            tokens = min(tokens, int(free_memory_bytes(device) * cache_share / bytes_per_token))
        self.capacity = Capacity(
            max_rows=max_rows,
            block_count=block_count(tokens) + 1,
            context_length=context_length,
            # A prompt is read whole; those beyond so many tokens wait for the next step.
            prefill_tokens_per_step=context_length,
            shares_prefixes=False,
        )
        self._sampler = Sampler(max_rows=max_rows, vocabulary_size=vocabulary_size, device=device.torch)

    def load_adapter(self, slot: int, adapter: AdapterHandle) -> None:
        """Put an adapter on a copy of the model, in place of the slot's last one.

        Raises AdapterUnsupported and OutOfMemory.
        """
        assert isinstance(adapter, CachedAdapter | PeftFolder)
        self._models.pop(slot, None)
        with memory_errors():
            self._models[slot] = put_on(self._models[0], adapter.folder)

    def swap_slots(self, swap: SlotSwap) -> bool:
        """Not needed: a slot that no sequence uses is not computed."""
        return False

    def start(self, sequence: Sequence) -> None:
        """Set the row of a sequence.

        Raises InvalidRequest for tokens that the base model does not have, and OutOfMemory.
        """
        prompt = sequence.prompt
        prompt.check_ids(self._embedding_count)
        with memory_errors():
            model = self._models[sequence.adapter_slot]
            steps = TextSteps(model, prompt.token_ids) if prompt.makes_tokens else None
            self._rows[sequence.row] = _Row(steps)
            self._sampler.set_row(sequence.row, prompt.sampling, prompt.seed, prompt.token_ids)

    def prefill(self, prefills: list[Prefill], ready: list[Sequence]) -> list[ChunkRead]:
        """Read each text whose embedding or log-probabilities are wanted, whole with its last chunk.

        Prompts to be continued are read by `decode`, as `generate` does. Raises OutOfMemory.
        """
        with memory_errors():
            return [self._read(prefill) for prefill in prefills]

    def _read(self, prefill: Prefill) -> ChunkRead:
        sequence, prompt = prefill.sequence, prefill.sequence.prompt
        if sequence.prefilled_count + prefill.token_count < sequence.prefill_length:
            return ChunkRead()
        model = self._models[sequence.adapter_slot]
        if prompt.embeds:
            return ChunkRead(hidden_sum=sum_hidden_states(model, prompt.token_ids))
        if prompt.is_scored:
            return ChunkRead(scores=score_text(model, prompt.token_ids, prompt.prompt_logprobs or 0))
        return ChunkRead()

    def decode(self, running: list[Sequence]) -> SampledBatch:
        """Sample a token for each row. The token of a row whose prompt has to wait is undefined.

        After an error no row has advanced. When it is called again, logits that were computed are used, and
        a text whose step failed is read from its beginning.
        Raises OutOfMemory.
        """
        is_active = [one.is_prefilled for one in running]
        with memory_errors():
            found = [self._logits(one) if one.is_prefilled else None for one in running]
            blank_1V = torch.zeros_like(next(one for one in found if one is not None))
            self._sampler.set_masks(running)
            active_B = torch.tensor(is_active, device=self._device.torch)
            logits_BV = torch.cat([blank_1V if one is None else one for one in found])
            sampled = self._sampler.sample(logits_BV, running[0].row, active_B)
        for index, one in enumerate(running):
            if one.is_prefilled:
                row = self._rows[one.row]
                # Where no token could be drawn, NO_TOKEN is no id.
                token_1 = sampled.tokens_B[index : index + 1].clamp(0, self._embedding_count - 1)
                row.token_1, row.logits_1V = token_1, None
        return sampled

    def decode_alone(self, sequence: Sequence) -> SampledBatch:
        """Sample a token for one sequence. Raises OutOfMemory."""
        return self.decode([sequence])

    def verify(self, running: list[Sequence], drafts: Mapping[Sequence, Draft]) -> SampledBatch:
        """Not possible: a cache of transformers can't take rejected tokens back in every family."""
        raise NotImplementedError("The general path has no verifying steps (`capacity.verified_positions`).")

    def move(self, move: Move) -> None:
        """Move a sequence to another row."""
        self._sampler.move(move.source, move.target)
        self._rows[move.target] = self._rows.pop(move.source)

    def free(self, row: int) -> None:
        """Drop the cache of a row without a sequence."""
        self._rows.pop(row, None)

    def is_usable(self) -> bool:
        """Whether the device still works. After some errors of a GPU only a new process can use it."""
        return is_usable(self._device)

    def close(self) -> None:
        """Free all memory."""
        self._models.clear()
        self._rows.clear()
        del self._sampler
        gc.collect()
        if self._device.is_cuda:
            torch.cuda.empty_cache()

    def _logits(self, sequence: Sequence) -> torch.Tensor:
        """The logits [1, V] of a sequence's next token, computed once."""
        row = self._rows[sequence.row]
        if row.logits_1V is not None:
            return row.logits_1V
        steps, row.steps = row.steps, None
        if steps is None:
            text_ids = [*sequence.prompt.token_ids, *sequence.token_ids]
            steps = TextSteps(self._models[sequence.adapter_slot], text_ids)
            logits_1V = steps.first_logits()
        else:
            token_1 = row.token_1
            logits_1V = steps.first_logits() if token_1 is None else steps.next_logits(token_1)
        row.steps, row.logits_1V = steps, logits_1V
        return logits_1V


def _measure(model: PreTrainedModel) -> tuple[int, int]:
    """Bytes of a sequence's cache per token, and the size of the vocabulary."""
    sizes = []
    for count in (_PROBE_TOKENS, 2 * _PROBE_TOKENS):
        steps = TextSteps(model, [0] * count)
        logits_1V = steps.first_logits()
        sizes.append(steps.cache_bytes)
    return (sizes[1] - sizes[0]) // _PROBE_TOKENS, logits_1V.shape[1]
