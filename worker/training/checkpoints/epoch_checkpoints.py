"""Saves the adapter at the end of each epoch but the last, as a folder that can be served and downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from worker.processes.reports import CheckpointAdapterSaved
from worker.training.attempt import TrainingAttempt
from worker.training.output import folder as output


class SaveEpochAdapters(TrainerCallback):
    """Saves and reports adapters. The last epoch's is the finished adapter, which is saved elsewhere."""

    def __init__(
        self,
        attempt: TrainingAttempt,
        tokenizer: PreTrainedTokenizerBase,
        make_record: Callable[[], output.Record],
    ) -> None:
        self._attempt = attempt
        self._tokenizer = tokenizer
        self._make_record = make_record

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Adapters that an earlier attempt saved and its worker did not move before it ended.
        for folder in self._attempt.epoch_adapters.glob("step-*"):
            if folder.suffix == "":
                self._attempt.send(
                    CheckpointAdapterSaved(step=int(folder.name.removeprefix("step-")), folder=folder)
                )
        # The checkpoint is of the end of an epoch, but the host that saved its adapter may be gone: again.
        if state.global_step and not self._folder(state.global_step).exists():
            self._save_at_end_of_epoch(state, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save_at_end_of_epoch(state, kwargs["model"])

    def _save_at_end_of_epoch(self, state: TrainerState, model: PeftModel) -> None:
        # Also called where training stops in the middle of an epoch.
        is_whole = state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-6
        if not is_whole or state.global_step >= state.max_steps:
            return
        folder = self._folder(state.global_step)
        output.write(folder, model, self._tokenizer, self._make_record())
        self._attempt.send(CheckpointAdapterSaved(step=state.global_step, folder=folder))

    def _folder(self, step: int) -> Path:
        return self._attempt.epoch_adapters / f"step-{step}"
