"""Trainer callbacks that report progress and metrics to the worker, and stop on its request."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.core.errors.jobs import LossNotFinite
from app.core.jobs.events import Evaluation, Metrics, PreferenceFigures
from worker.models.device import Device, peak_memory_bytes
from worker.processes.reports import Advanced, CurvePoint, Happened
from worker.training.progress.counters import Counters, Launched
from worker.training.progress.device_use import DeviceUseReader
from worker.training.progress.history import History
from worker.training.progress.loss_guard import LossGuard
from worker.training.progress.preference_sums import figures
from worker.training.ranks.world import ALONE, World

Send = Callable[[BaseModel], None]

# The remaining time is estimated from so many last steps.
_RECENT_STEPS = 50


class Reporter(TrainerCallback):
    """Reports progress and metrics. Times optimizer steps only, without evaluations and checkpoints."""

    def __init__(
        self,
        send: Send,
        counters: Counters,
        history: History,
        guard: LossGuard,
        device: Device,
        *,
        world: World = ALONE,
        clock: Callable[[], float] = time.monotonic,
        device_use: DeviceUseReader | None = None,
    ) -> None:
        self._send = send
        self._counters = counters
        self._history = history
        self._guard = guard
        self._device = device
        self._world = world
        self._device_use = device_use or DeviceUseReader(device)
        self._clock = clock
        self._began = 0.0
        self._launched: deque[tuple[Launched, int, float | None]] = deque()  # with step and epoch
        self._recent_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._logged = (counters.tokens, counters.seconds)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._send(Advanced(step=state.global_step, total_steps=state.max_steps, epoch=state.epoch))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._launched:
            self._began = self._clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        self._launched.append((self._counters.launched(self._world), state.global_step, state.epoch))
        is_read = control.should_log or control.should_evaluate or control.should_save
        # The next step is launched while the GPU computes this one.
        ahead = 1 if self._device.is_cuda and not is_read and not control.should_training_stop else 0
        self.wait_for_steps(args, state, ahead)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.wait_for_steps(args, state)

    def wait_for_steps(self, args: TrainingArguments, state: TrainerState, ahead: int = 0) -> None:
        """Wait for all launched steps but the last `ahead`, and report them. Nothing else in a step waits for
        the device, so this times steps correctly."""
        while len(self._launched) > ahead:
            launched, step, epoch = self._launched.popleft()
            values = launched.wait()
            now = self._clock()
            seconds, self._began = now - self._began, now
            self._recent_seconds.append(seconds)
            self._counters.end_step(values, seconds)
            self._guard.check(step, state.max_steps, args.learning_rate)
            self._send(
                Advanced(
                    step=step,
                    total_steps=state.max_steps,
                    epoch=epoch,
                    loss=values.loss,
                    eta_seconds=self._eta_seconds(step, state.max_steps),
                )
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # The trainer also logs evaluations and a summary, which have no `loss`.
        if not logs or "loss" not in logs:
            return
        use = self._device_use.read()
        self._send_point(
            Metrics(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=state.epoch or 0.0,
                # The trainer's mean leaves out the steps before an interruption.
                loss=self._counters.end_window(),
                grad_norm=_finite(logs.get("grad_norm")),
                learning_rate=logs.get("learning_rate"),
                token_accuracy=logs.get("mean_token_accuracy"),
                tokens=self._counters.tokens,
                tokens_per_second=self._tokens_per_second(),
                memory_bytes=peak_memory_bytes(self._device),
                memory_used_bytes=use.memory_bytes,
                gpu_utilization_percent=use.utilization_percent,
                eta_seconds=self._eta_seconds(state.global_step, state.max_steps),
                **figures(self._counters.end_preferences()),
            )
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        metrics = kwargs["metrics"]
        loss = metrics["eval_loss"]
        if not math.isfinite(loss):
            raise LossNotFinite(f"The evaluation loss became NaN or infinite at step {state.global_step}.")
        self._counters.evaluated_step, self._counters.evaluated_loss = state.global_step, loss
        self._send_point(
            Evaluation(
                step=state.global_step,
                epoch=state.epoch or 0.0,
                loss=loss,
                token_accuracy=metrics.get("eval_mean_token_accuracy"),
                **{name: metrics.get(f"eval_{name}") for name in PreferenceFigures.model_fields},
            )
        )

    def _send_point(self, point: CurvePoint) -> None:
        self._history.add(point)
        self._send(Happened(event=point))

    def _eta_seconds(self, step: int, total: int) -> float | None:
        if not self._recent_seconds:
            return None
        mean = sum(self._recent_seconds) / len(self._recent_seconds)
        return (total - step) * mean

    def _tokens_per_second(self) -> float | None:
        tokens, seconds = self._counters.tokens, self._counters.seconds
        (tokens_before, seconds_before), self._logged = self._logged, (tokens, seconds)
        return (tokens - tokens_before) / (seconds - seconds_before) if seconds > seconds_before else None


class StopOnRequest(TrainerCallback):
    """Ends training with a checkpoint after the present step, on request. Must follow the Reporter."""

    def __init__(self, requested: threading.Event, reporter: Reporter) -> None:
        self._requested = requested
        self._reporter = reporter

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._requested.is_set():
            self._reporter.wait_for_steps(args, state)
            control.should_save = True
            control.should_training_stop = True


def _finite(value: float | None) -> float | None:
    """The value, or None where it is not finite, as gradients in float16 may be: JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
