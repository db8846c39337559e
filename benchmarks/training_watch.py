"""Measures training steps for benchmarks/training.py: time, tokens and kernels."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from trl import SFTTrainer

from benchmarks.collectives import measure_collectives
from worker.training.batches import count_tokens

_MAX_KERNELS = 40


class StepTimer(TrainerCallback):
    """Times the steps between the first few and the last, which is profiled.

    The host waits for the device only before and after these steps, so they overlap as in any job. `meet`
    waits for all ranks: starting the profiler takes each another time.
    """

    def __init__(
        self, trainer: SFTTrainer, is_cuda: bool, warm_up: int, meet: Callable[[], object] = lambda: None
    ) -> None:
        self._is_cuda = is_cuda
        self._warm_up = warm_up
        self._meet = meet
        self._began = 0.0
        self._profiler: torch.profiler.profile | None = None
        self.seconds: list[float] = []
        self._tokens: list[list[torch.Tensor]] = []
        self.profile: dict[str, Any] | None = None
        self._training_step = trainer.training_step
        trainer.training_step = self._count

    @property
    def tokens(self) -> list[int]:
        """Tokens of every step, without padding."""
        return [sum(int(count) for count in counts) for counts in self._tokens]

    def _count(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **options: Any) -> torch.Tensor:
        self._tokens[-1].append(count_tokens(inputs))  # reading it would wait for the device
        return self._training_step(model, inputs, *rest, **options)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock once the device is idle."""
        self._tokens.append([])
        if state.global_step in (0, self._warm_up, state.max_steps - 1):
            self._wait()
            self._began = time.perf_counter()
        if state.global_step == state.max_steps - 1:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            kinds += [torch.profiler.ProfilerActivity.CUDA] if self._is_cuda else []
            self._profiler = torch.profiler.profile(activities=kinds, acc_events=True)
            self._profiler.start()
            self._meet()
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock once the device is idle."""
        if state.global_step >= state.max_steps - 1:
            self._wait()
        now = time.perf_counter()
        self.seconds.append(now - self._began)
        self._began = now
        if self._profiler is not None:
            self._profiler.stop()
            self.profile = {
                **summarize_profile(self._profiler, is_cuda=self._is_cuda),
                "step_ms": round(self.seconds[-1] * 1e3, 3),
                **measure_collectives(self._profiler.events(), is_cuda=self._is_cuda),
            }
            self._profiler = None

    def _wait(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize()


def summarize_profile(profiler: torch.profiler.profile, *, is_cuda: bool) -> dict[str, Any]:
    """Count and time in ms of a step's kernels (on a CPU: operators), and the longest of them."""
    kind = torch.autograd.DeviceType.CUDA if is_cuda else torch.autograd.DeviceType.CPU
    events = [
        event
        for event in profiler.key_averages()
        # A named range (the optimizer's step) covers kernels that are here themselves.
        if event.device_type == kind and not getattr(event, "is_user_annotation", False)
    ]

    def milliseconds(event: Any) -> float:
        return (event.self_device_time_total if is_cuda else event.self_cpu_time_total) / 1e3

    largest = sorted(events, key=milliseconds, reverse=True)[:_MAX_KERNELS]
    return {
        "kind": "kernels" if is_cuda else "operators",
        "count": sum(event.count for event in events),
        "ms": round(sum(map(milliseconds, events)), 2),
        "largest": [
            {"name": event.key[:120], "count": event.count, "ms": round(milliseconds(event), 2)}
            for event in largest
        ],
    }
