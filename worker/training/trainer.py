"""TRL's trainer, made to resume exactly and to checkpoint whole: order of rows, counters, checkpoints."""

import math
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from app.core.errors import LossNotFinite
from app.core.states import Phase
from worker.reports import Advanced
from worker.training import adapter, checkpoints
from worker.training.batches import EpochSampler, count_tokens
from worker.training.callbacks import Send
from worker.training.checkpoints import Counters
from worker.training.folders import appearing


class AdapterTrainer(SFTTrainer):
    """Trains the adapter of a PeftModel.

    Some methods it replaces or calls are private to transformers; 5.17 to 5.23 have them.
    """

    def __init__(self, *, counters: Counters, send: Send, **options: Any) -> None:
        self.counters = counters
        self._send = send
        super().__init__(**options)
        self.remove_callback(PrinterCallback)
        adapter.trainable_to_float32(self.model)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass. Raises LossNotFinite."""
        self.counters.tokens += count_tokens(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.counters.step_loss += loss.item()
        if not math.isfinite(self.counters.step_loss):
            raise self._not_finite("loss")
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss on the rows held out; says so, as it may take a while."""
        self._send(Advanced(phase=Phase.EVALUATING))
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self.is_in_train:
            self._send(Advanced(phase=Phase.TRAINING))
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        return EpochSampler(
            [len(ids) for ids in rows["input_ids"]],
            seed=self.args.data_seed,
            group_size=self.args.train_batch_size * self.args.gradient_accumulation_steps
            if grouped
            else None,
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not adapter.is_finite(self.model):
            raise self._not_finite("adapter")
        parent = Path(self.args.output_dir)
        with appearing(checkpoints.folder_of(parent, self.state.global_step)) as folder:
            adapter.save(self.model, folder)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            checkpoints.write_counters(folder, self.counters)
        checkpoints.remove_older(parent)

    def _not_finite(self, thing: str) -> LossNotFinite:
        step, total = self.state.global_step + 1, self.state.max_steps
        return LossNotFinite(
            f"The {thing} became NaN or infinite at step {step} of {total}.",
            hint=f"Lower training.learning_rate (it is {self.args.learning_rate:g}) or give it a warm-up: "
            'lr_scheduler_type "cosine", warmup_ratio 0.1.',
        )
