"""What happens while the trainer trains: progress and metrics for the worker, early and asked-for stops."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.core.errors import LossNotFinite
from app.core.events import Checkpoint, Evaluation, Log, Metrics
from worker.device import Device, peak_memory_bytes
from worker.reports import Advanced, Happened
from worker.training import adapter
from worker.training.checkpoints import Counters
from worker.training.folders import appearing

Send = Callable[[BaseModel], None]

# The time left is reckoned from so many last steps.
_RECENT_STEPS = 50


class Reporter(TrainerCallback):
    """Sends what happens. Only optimizer steps are timed: evaluations and checkpoints are left out."""

    def __init__(
        self, send: Send, counters: Counters, device: Device, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._counters = counters
        self._device = device
        self._clock = clock
        self._began = 0.0
        self._recent_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._logged = (counters.tokens, counters.seconds)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._send(Advanced(step=state.global_step, total_steps=state.max_steps, epoch=state.epoch))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = self._clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        seconds = self._clock() - self._began
        self._recent_seconds.append(seconds)
        self._counters.end_step(seconds)
        if state.global_step >= state.max_steps:
            control.should_log = True
        self._send(
            Advanced(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=state.epoch,
                loss=self._counters.last_loss,
                eta_seconds=self._eta_seconds(state),
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
        # The trainer also logs evaluations and a summary; those have no `loss`.
        if not logs or "loss" not in logs:
            return
        self._send(
            Happened(
                event=Metrics(
                    step=state.global_step,
                    total_steps=state.max_steps,
                    epoch=state.epoch or 0.0,
                    # The trainer's own mean forgets the steps before an interruption.
                    loss=self._counters.end_window(),
                    grad_norm=_finite(logs.get("grad_norm")),
                    learning_rate=logs.get("learning_rate"),
                    token_accuracy=logs.get("mean_token_accuracy"),
                    tokens=self._counters.tokens,
                    tokens_per_second=self._tokens_per_second(),
                    memory_bytes=peak_memory_bytes(self._device),
                    eta_seconds=self._eta_seconds(state),
                )
            )
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        loss = kwargs["metrics"]["eval_loss"]
        if not math.isfinite(loss):
            raise LossNotFinite(f"The evaluation loss became NaN or infinite at step {state.global_step}.")
        self._counters.evaluated_step, self._counters.evaluated_loss = state.global_step, loss
        accuracy = kwargs["metrics"].get("eval_mean_token_accuracy")
        event = Evaluation(
            step=state.global_step, epoch=state.epoch or 0.0, loss=loss, token_accuracy=accuracy
        )
        self._send(Happened(event=event))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._send(Happened(event=Checkpoint(step=state.global_step)))

    def _eta_seconds(self, state: TrainerState) -> float | None:
        if not self._recent_seconds:
            return None
        mean = sum(self._recent_seconds) / len(self._recent_seconds)
        return (state.max_steps - state.global_step) * mean

    def _tokens_per_second(self) -> float | None:
        tokens, seconds = self._counters.tokens, self._counters.seconds
        (tokens_before, seconds_before), self._logged = self._logged, (tokens, seconds)
        return (tokens - tokens_before) / (seconds - seconds_before) if seconds > seconds_before else None


class StopWhenAsked(TrainerCallback):
    """Ends training after the present optimizer step, with a checkpoint."""

    def __init__(self, asked: threading.Event) -> None:
        self._asked = asked

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._asked.is_set():
            control.should_save = True
            control.should_training_stop = True


class StopEarly(TrainerCallback):
    """Keeps the adapter of the lowest evaluation loss; ends training when that no longer falls."""

    def __init__(self, send: Send, counters: Counters, patience: int, best_folder: Path) -> None:
        self._send = send
        self._counters = counters
        self._patience = patience
        self._best_folder = best_folder

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        loss = kwargs["metrics"]["eval_loss"]
        if self._counters.best_loss is None or loss < self._counters.best_loss:
            self._counters.best_loss = loss
            self._counters.evaluations_without_gain = 0
            with appearing(self._best_folder) as folder:
                adapter.save(kwargs["model"], folder)
            return
        self._counters.evaluations_without_gain += 1
        if self._counters.evaluations_without_gain >= self._patience:
            control.should_save = True
            control.should_training_stop = True
            self._send(
                Happened(
                    event=Log(
                        message=f"Stopping early at step {state.global_step}: the evaluation loss has not "
                        f"fallen below {self._counters.best_loss:.4f} in {self._patience} evaluations."
                    )
                )
            )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity; float16 training skips a step whose gradient is infinite and goes on."""
    return value if value is not None and math.isfinite(value) else None
