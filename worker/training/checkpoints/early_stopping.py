"""Early stopping: saves the adapter with the lowest evaluation loss; ends training when that stops falling.

The best adapters are in one folder, by step; the counters of a checkpoint name the best one at its time.
"""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.core.jobs.events import Log
from worker.atomic_folders import appearing
from worker.processes.reports import Happened
from worker.training import adapter
from worker.training.checkpoints import store as checkpoints
from worker.training.progress.callbacks import Send
from worker.training.progress.counters import Counters


class StopEarly(TrainerCallback):
    """Stops training after `patience` evaluations in a row without a lower loss."""

    def __init__(self, send: Send, counters: Counters, patience: int, best_adapters: Path | None) -> None:
        """`best_adapters`: None on ranks that save nothing."""
        self._send = send
        self._counters = counters
        self._patience = patience
        self._best_adapters = best_adapters

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        counters, loss = self._counters, kwargs["metrics"]["eval_loss"]
        if counters.best_loss is None or loss < counters.best_loss:
            counters.best_loss, counters.best_step = loss, state.global_step
            counters.evaluations_without_gain = 0
            if self._best_adapters:
                with appearing(folder_of(self._best_adapters, state.global_step)) as folder:
                    adapter.save(kwargs["model"], folder)
            return
        counters.evaluations_without_gain += 1
        if counters.evaluations_without_gain >= self._patience:
            control.should_save = True
            control.should_training_stop = True
            self._send(
                Happened(
                    event=Log(
                        message=f"Stopping early at step {state.global_step}: the evaluation loss has not "
                        f"fallen below {counters.best_loss:.4f} in {self._patience} evaluations."
                    )
                )
            )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._best_adapters is None:
            return
        all_counters = [self._counters, *checkpoints.read_all_counters(Path(str(args.output_dir)))]
        named = {
            folder_of(self._best_adapters, counters.best_step)
            for counters in all_counters
            if counters.best_step
        }
        for folder in self._best_adapters.glob("step-*"):
            if folder not in named:
                shutil.rmtree(folder, ignore_errors=True)


def folder_of(best_adapters: Path, step: int) -> Path:
    """The folder of the adapter that was saved at a step."""
    return best_adapters / f"step-{step}"
