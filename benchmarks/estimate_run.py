"""Trains one setting of benchmarks/estimate.py as a training process does, and measures its memory."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from app.core.jobs.events import Log, Warn
from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from benchmarks.estimate_settings import PADDED_SHARE, SHORT_ROW, Setting
from benchmarks.training_setups import make_request
from worker.models.device import find_device
from worker.models.files import description
from worker.planning.memory_estimate import CUDA_CONTEXT
from worker.processes.reports import Happened
from worker.templates.choice import TemplateSource
from worker.templates.token_rows import IGNORED, TokenRow
from worker.training import memory, run
from worker.training.attempt import TrainingAttempt
from worker.training.batches import count_tokens
from worker.training.construction import make_trainer
from worker.training.optimizations.apply import apply_optimizations, make_plan
from worker.training.optimizations.decoder_graphs import GraphedDecoder
from worker.training.rows import PreparedRows
from worker.training.trainer import AdapterTrainer


def train(setting: Setting, parent: Path) -> dict[str, Any]:
    """Train the steps of a setting, with its training path, on the model in a folder under `parent`."""
    said: list[str] = []
    folder = parent / "models" / setting.model
    attempt = _make_attempt(setting, parent, said)
    if setting.card_gibibytes:
        _limit_memory(setting.card_gibibytes << 30)
    model, _base_biases = run.load(attempt, folder)
    allocator = Allocator(attempt.device.is_cuda)
    loaded, peak_loading = allocator.allocated(), allocator.take_peak()
    spec = attempt.request.spec
    trainer = make_trainer(
        attempt,
        model,
        description.load_tokenizer(folder),
        PreparedRows(_rows(setting, model.config.vocab_size), [], [], TemplateSource.MODEL),
        spec.training,
        packed_length=setting.length if setting.rows == "packed" else None,
        newest=None,
    )
    plan = make_plan(attempt, model.get_base_model(), spec.training, attempt.request.path)
    with apply_optimizations(attempt, trainer, plan):
        peak_trial = allocator.take_peak()
        passes = PassMemory(trainer, allocator)
        began = time.monotonic()
        trainer.train()
        allocator.wait()
        seconds = time.monotonic() - began
        graphs = [spare for spare in trainer.spare_memory if isinstance(spare, GraphedDecoder)]
        recordings = sum(decoder.captured_count for decoder in graphs)
        peak = max(*passes.peaks, allocator.take_peak())
        with_spare = allocator.allocated()
        for spare in trainer.spare_memory:
            spare.release()
        memory.free()
        staying = allocator.allocated()
    return {
        "name": setting.name,
        "path": setting.path,
        "device": attempt.device.name,
        "said": said,
        "peak_allocated_bytes": peak,
        "peak_needed_bytes": passes.find_needed(staying),
        "peak_reserved_bytes": allocator.max_reserved,
        "peak_loading_bytes": peak_loading,
        "peak_trial_bytes": peak_trial,
        "loaded_bytes": loaded,
        "graphs": recordings,
        "spare_bytes": with_spare - staying,
        "passes": passes.passes,
        "seconds": round(seconds, 2),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def _limit_memory(card_bytes: int) -> None:
    """Limit the device to the memory of a card of so many bytes, of which the CUDA context takes some."""
    _free_bytes, total_bytes = torch.cuda.mem_get_info()
    usable_bytes = card_bytes - CUDA_CONTEXT
    torch.cuda.set_per_process_memory_fraction(usable_bytes / total_bytes)
    torch.cuda.mem_get_info = lambda *_device: (usable_bytes - torch.cuda.memory_reserved(), card_bytes)


class Allocator:
    """Bytes that PyTorch has allocated on a GPU; 0 on a CPU, where PyTorch does not count."""

    def __init__(self, is_cuda: bool) -> None:
        self._is_cuda = is_cuda
        self.max_reserved = 0  # including the pools of CUDA graphs

    def allocated(self) -> int:
        """Allocated at this time."""
        return torch.cuda.memory_allocated() if self._is_cuda else 0

    def take_peak(self) -> int:
        """Most allocated since the last call."""
        if not self._is_cuda:
            return 0
        peak = torch.cuda.max_memory_allocated()
        self.max_reserved = max(self.max_reserved, torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()
        return peak

    def wait(self) -> None:
        """Wait until the device has finished all work."""
        if self._is_cuda:
            torch.cuda.synchronize()


class PassMemory:
    """Records the allocator's bytes before and after the forward and backward pass of every batch."""

    def __init__(self, trainer: AdapterTrainer, allocator: Allocator) -> None:
        self.passes: list[dict[str, int]] = []
        self.peaks: list[int] = []
        self._trainer = trainer
        self._allocator = allocator
        self._compute_loss: Callable[..., Any] = trainer.compute_loss
        self._training_step: Callable[..., Any] = trainer.training_step
        trainer.compute_loss, trainer.training_step = self._forward, self._whole

    def find_needed(self, staying: int) -> int:
        """The peak without spare memory: bytes at the beginning of a step in excess of `staying` bytes."""
        needed = 0
        began: dict[int, int] = {}
        for entry in self.passes:
            spare = max(0, began.setdefault(entry["step"], entry["before"]) - staying)
            needed = max(needed, max(entry["forward_peak"], entry["backward_peak"]) - spare)
        return needed

    def _forward(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._take_peak()
        before = self._allocator.allocated()
        entry = {
            "step": self._trainer.state.global_step,
            "sequences": memory.count_rows(inputs),
            # As the model gets them: padding counts.
            "tokens": inputs["input_ids"].numel(),
            "real_tokens": int(count_tokens(inputs)),
            "scored": memory.count_trained(inputs),
            "before": before,
        }
        loss = self._compute_loss(model, inputs, *args, **kwargs)
        self.passes.append(
            {**entry, "after_forward": self._allocator.allocated(), "forward_peak": self._take_peak()}
        )
        return loss

    def _whole(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._training_step(*args, **kwargs)
        self.passes[-1]["backward_peak"] = self._take_peak()
        return loss

    def _take_peak(self) -> int:
        self.peaks.append(self._allocator.take_peak())
        return self.peaks[-1]


def _make_attempt(setting: Setting, parent: Path, said: list[str]) -> TrainingAttempt:
    def send(report: Any) -> None:
        if isinstance(report, Happened) and isinstance(report.event, Log | Warn):
            said.append(report.event.message)

    request = make_request(
        JobSpec.model_validate(setting.spec()),
        dataset=parent,
        models_folder=parent / "models",
        job_folder=parent / "jobs" / setting.name.replace(" ", "-"),
        path=TrainingPath(setting.path),
    )
    return TrainingAttempt(request, find_device(), send, threading.Event())


def _rows(setting: Setting, vocabulary: int) -> list[TokenRow]:
    draw = random.Random(0)
    count = setting.steps * setting.batch * setting.accumulation
    if setting.rows == "packed":
        count *= setting.length // SHORT_ROW
    lengths = [setting.length] * count
    if setting.rows == "ragged":
        low = int(setting.length * PADDED_SHARE)
        lengths = [
            setting.length if index % setting.batch == 0 else draw.randint(low, setting.length)
            for index in range(count)
        ]
    if setting.rows == "packed":
        lengths = [draw.randint(SHORT_ROW // 3, SHORT_ROW * 5 // 3) for _ in range(count)]
    rows = []
    for line, length in enumerate(lengths, start=1):
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        rows.append(TokenRow(line, ids, [IGNORED, *ids[1:]]))
    return rows
