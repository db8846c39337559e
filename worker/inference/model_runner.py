"""Runs the base model: reads prompts piece by piece and makes one token for every row of the batch.

The transformers model is used unmodified, with the slot cache behind its attention and LoRA slots behind its
linear layers. Knows nothing of queues, text or HTTP.
Shape letters: R all rows, B rows of a step, T tokens, V vocabulary.
"""

import contextlib
import gc
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from app.core.errors import OutOfMemory
from worker.device import Device, free_memory_bytes
from worker.inference import attention, model_support
from worker.inference.adapters import Adapter
from worker.inference.kv_cache import KVCache
from worker.inference.lora_slots import LoraSlots
from worker.inference.sampling import Sampler
from worker.inference.scheduler import Capacity, Move
from worker.inference.sequence import LoadedAdapter, Made, Sequence

MAX_ROWS = 32
# Of the memory that is free once the model is loaded; a training job and the adapters want some too.
_CACHE_SHARE_OF_FREE_MEMORY = {"cpu": 0.25, "cuda": 0.5}


class ModelRunner:
    """One base model on the device. All of it is used from one thread."""

    def __init__(
        self, model: PreTrainedModel, device: Device, *, adapter_slot_count: int, max_rows: int = MAX_ROWS
    ) -> None:
        bytes_per_token = model_support.adopt(model)
        self._model = model
        self._device = device
        budget_bytes = free_memory_bytes(device) * _CACHE_SHARE_OF_FREE_MEMORY[device.kind]
        self.capacity = Capacity(
            max_rows=max_rows,
            max_tokens=int(budget_bytes / bytes_per_token),
            context_length=model_support.context_length(model),
        )
        self._cache = KVCache(max_tokens=self.capacity.max_tokens)
        self._slots = LoraSlots(model, count=adapter_slot_count, dtype=model.dtype, device=device.torch)
        vocabulary_size = model.get_output_embeddings().weight.shape[0]
        self._sampler = Sampler(max_rows=max_rows, vocabulary_size=vocabulary_size, device=device.torch)
        self._tokens_R = torch.zeros(max_rows, dtype=torch.long, device=device.torch)
        self._positions_R = torch.zeros(max_rows, dtype=torch.long, device=device.torch)
        self._adapter_slots_R = torch.zeros(max_rows, dtype=torch.long, device=device.torch)
        # Rows whose prompt is not yet read run along in a decode step, and what they make is dropped.
        self._active_R = torch.zeros(max_rows, dtype=torch.bool, device=device.torch)

    def load_adapter(self, slot: int, adapter: LoadedAdapter) -> None:
        """Put an adapter into a slot. Raises AdapterUnsupported and OutOfMemory."""
        assert isinstance(adapter, Adapter)
        with _memory_errors(), torch.inference_mode():
            self._slots.load(slot, adapter)

    def start(self, sequence: Sequence) -> None:
        """A sequence was given its row; nothing of its prompt is read yet."""
        self._positions_R[sequence.row] = 0
        self._active_R[sequence.row] = False
        self._adapter_slots_R[sequence.row] = sequence.adapter_slot

    def prefill(self, sequence: Sequence, token_count: int, running: list[Sequence]) -> Made | None:
        """Read the next so many tokens of a prompt; answers the first token made once all are read.

        Raises OutOfMemory.
        """
        start, row = sequence.prefilled_count, sequence.row
        end = start + token_count
        with _memory_errors(), torch.inference_mode():
            self._reserve(running)
            ids_1T = torch.tensor([sequence.prompt.token_ids[start:end]], device=self._device.torch)
            positions_1T = torch.arange(start, end, device=self._device.torch)[None]
            self._slots.select([sequence.adapter_slot], self._adapter_slots_R[row : row + 1])
            step = attention.Step(self._cache, row, positions_1T, end, prefill_start=start)
            logits_1V = self._forward(ids_1T, step)
            # A decode step writes the row's next keys here; the next piece of the prompt overwrites them.
            self._positions_R[row] = end
            if end < len(sequence.prompt.token_ids):
                return None
            return self._activate(sequence, logits_1V)

    def decode(self, running: list[Sequence]) -> list[Made]:
        """One token for each row; where the prompt is not read yet it means nothing. Raises OutOfMemory."""
        rows = slice(0, len(running))
        with _memory_errors(), torch.inference_mode():
            self._reserve(running)
            self._slots.select([one.adapter_slot for one in running], self._adapter_slots_R[rows])
            step = attention.Step(
                self._cache, 0, self._positions_R[rows, None], self._longest(running), prefill_start=None
            )
            logits_BV = self._forward(self._tokens_R[rows, None], step)
            active_B = self._active_R[rows]
            self._sampler.set_masks(running)
            sampled = self._sampler.sample(logits_BV, 0, active_B)
            self._tokens_R[rows] = sampled.tokens_B
            self._positions_R[rows] += active_B
            return sampled.to_host()

    def move(self, move: Move, sequence: Sequence) -> None:
        """A sequence goes on in another row."""
        with torch.inference_mode():
            self._cache.move(move.source, move.target, sequence.length)
            self._sampler.move(move.source, move.target)
            for tensor_R in (self._tokens_R, self._positions_R, self._adapter_slots_R, self._active_R):
                tensor_R[move.target] = tensor_R[move.source]

    def is_usable(self) -> bool:
        """Whether the device still answers; after some errors of a GPU nothing but a new process helps."""
        try:
            return torch.ones(1, device=self._device.torch).item() == 1
        except RuntimeError:
            return False

    def close(self) -> None:
        """Give all memory back."""
        del self._model, self._cache, self._slots, self._sampler
        gc.collect()
        if self._device.is_cuda:
            torch.cuda.empty_cache()

    def _activate(self, sequence: Sequence, logits_1V: torch.Tensor) -> Made:
        """The prompt is read: choose the first token, and make one in every decode step from now on."""
        row, prompt = sequence.row, sequence.prompt
        self._sampler.set_row(row, prompt.sampling, prompt.seed, prompt.token_ids)
        self._sampler.set_masks([sequence])
        self._active_R[row] = True
        sampled = self._sampler.sample(logits_1V, row, self._active_R[row : row + 1])
        self._tokens_R[row] = sampled.tokens_B[0]
        return sampled.to_host()[0]

    def _reserve(self, running: list[Sequence]) -> None:
        self._cache.reserve(len(running), self._longest(running))

    def _longest(self, running: list[Sequence]) -> int:
        return max(one.length for one in running)

    def _forward(self, ids_BT: torch.Tensor, step: attention.Step) -> torch.Tensor:
        output = self._model(
            input_ids=ids_BT, position_ids=step.positions_BT, use_cache=False, logits_to_keep=1, step=step
        )
        logits_BTV: torch.Tensor = output.logits
        return logits_BTV[:, -1]


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
