"""The worker's own engine process, with a stand-in for the model that takes as long as a 7B model on an H200.

Everything but the model is the engine's own: HTTP, preprocessing, the loop, batches, the state of rows and
sampling. A forward pass takes time on a simulated device, for which `to_host` waits; launching one takes
processor time here. What delays the first tokens of many clients beside the model is found so without a GPU.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.endless_engine import without_end
from worker.inference import server
from worker.inference.__main__ import main
from worker.inference.batching.sequence import SampledToken, Sequence
from worker.inference.model.passes import prefill
from worker.inference.model.runner import ModelRunner
from worker.inference.model.step_graphs import StepGraphs, batch_sizes
from worker.models.device import find_device

_ROWS = 128
_PREFILL_TOKENS_PER_STEP = 1536
_VOCABULARY = 64  # small, so that sampling takes as little as its launches on a GPU
_KNOWN_IDS = 1 << 20
_REPLAY_SECONDS = 0.3e-3
# A pass without a graph: its operations, and the Python before each of them.
_PIECES = 32 * 15
_PIECE_SECONDS = 25e-3 / _PIECES


def decode_seconds(rows: int) -> float:
    """What a decode step takes on the device."""
    return 4.6e-3 + rows * 46e-6


def prefill_seconds(tokens: int) -> float:
    """What reading so many tokens takes on the device."""
    return max(4e-3, tokens * 22e-6)


class SimulatedDevice:
    """Computes one launch after another. `done_at`: when all that was launched is done."""

    def __init__(self) -> None:
        self.done_at = 0.0

    def launch(self, seconds: float) -> None:
        """Add work."""
        self.done_at = max(self.done_at, time.perf_counter()) + seconds


class _Graphs:
    """Stands for captured graphs of these sizes."""

    def __init__(
        self,
        device: SimulatedDevice,
        sizes: list[int],
        seconds: Callable[[int], float],
        output: torch.Tensor,
    ) -> None:
        self._device = device
        self._sizes = sizes
        self._seconds = seconds
        self._output = output

    def size(self, needed: int) -> int | None:
        return next((size for size in self._sizes if size >= needed), None)

    def run(self, needed: int, _slot_count: int) -> torch.Tensor:
        size = self.size(needed)
        assert size is not None
        time.sleep(_REPLAY_SECONDS)  # other threads run meanwhile, as during a replay
        self._device.launch(self._seconds(size))
        return self._output

    def discard(self) -> None: ...


class _Pending:
    def __init__(self, tokens: Any, done_at: float) -> None:
        self._tokens, self._done_at = tokens, done_at

    def to_host(self) -> list[SampledToken]:
        time.sleep(max(0.0, self._done_at - time.perf_counter()))
        found: list[SampledToken] = self._tokens.to_host()
        return found


class TimedRunner(ModelRunner):
    """The engine's runner without a model."""

    def __init__(self, adapter_slot_count: int) -> None:
        config = LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=8192,
        )
        model = LlamaForCausalLM(config).eval()
        super().__init__(model, find_device(), adapter_slot_count=adapter_slot_count, max_rows=_ROWS)
        self._simulated = SimulatedDevice()
        self._embedding_count = _KNOWN_IDS
        self.is_asynchronous = True
        self.capacity = replace(
            self.capacity, prefill_tokens_per_step=_PREFILL_TOKENS_PER_STEP, verified_positions=0
        )
        self._hidden = torch.zeros(2 * _PREFILL_TOKENS_PER_STEP, 64)
        self._logits = torch.zeros(_ROWS, _VOCABULARY)
        sizes = batch_sizes(_ROWS), prefill.SIZES
        self._decode_graphs = cast(
            StepGraphs, _Graphs(self._simulated, sizes[0], decode_seconds, self._logits)
        )
        self._prefilling._graphs = cast(
            StepGraphs, _Graphs(self._simulated, sizes[1], prefill_seconds, self._hidden)
        )

    def decode(self, running: list[Sequence]) -> Any:
        return _Pending(super().decode(running), self._simulated.done_at)

    def _forward(self, ids_N: torch.Tensor, step: Any, *, has_logits: bool = False) -> torch.Tensor:
        """Launch the pieces of a prefill that fits no graph."""
        piece = self._hidden[0]
        device_seconds = prefill_seconds(len(ids_N)) / _PIECES
        for _ in range(_PIECES):
            until = time.perf_counter() + _PIECE_SECONDS
            while time.perf_counter() < until:
                pass
            piece.add_(0)
            self._simulated.launch(device_seconds)
        return self._hidden[: len(ids_N)]


def _load(request: Any, device: Any, reference: Any, **_: Any) -> TimedRunner:
    return TimedRunner(request.adapter_slots)


def run(report_fd: int) -> int:
    """Run the engine process. Returns the exit status."""
    without_end()
    server.load_runner = _load  # type: ignore[assignment]
    return main(report_fd)


if __name__ == "__main__":
    os._exit(run(int(sys.argv[1])))
