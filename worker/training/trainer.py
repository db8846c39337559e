"""TRL's trainer with exact resuming, atomic checkpoints and recovery from running out of memory.

When a pass runs out of memory, its optimizer step is repeated with half the rows in a pass and twice the
passes. The step's gradients are dropped and its random state is restored, so weights, optimizer state and the
order of rows are those that smaller passes would have given. (transformers' `auto_find_batch_size` restarts
the whole training, with a smaller effective batch.)
"""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from app.core.errors.jobs import OutOfMemory
from app.core.jobs.events import Checkpoint, Log, Warn
from app.core.specs.states import Phase
from worker.atomic_folders import appearing
from worker.models.device import is_out_of_memory
from worker.processes.reports import Advanced, Happened
from worker.training import adapter, loss, memory
from worker.training.batches import EpochSampler, count_tokens
from worker.training.checkpoints import store as checkpoints
from worker.training.loss import TokenScores
from worker.training.memory import Batch
from worker.training.model_names import add_names
from worker.training.progress.callbacks import Send
from worker.training.progress.counters import Counters
from worker.training.progress.history import History
from worker.training.progress.loss_guard import not_finite

Computed = TypeVar("Computed")


class _NoGradientOfEmbeddings(TrainerCallback):
    """Turns off the gradient of the embeddings' output, which TRL and transformers turn on for reentrant
    checkpointing: that is not used here, so the first layer would compute the gradient in vain."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].get_base_model().disable_input_require_grads()


class AdapterTrainer(SFTTrainer):
    """Trains the adapter of a PeftModel.

    It overrides and calls private methods of transformers, as 5.17 to 5.23 have them.
    """

    def __init__(self, *, counters: Counters, history: History, send: Send, **options: Any) -> None:
        self.counters = counters
        self._history = history
        self._send = send
        self._step: int | None = None
        self._step_batches: list[Batch] = []
        self._random_before_step = memory.RandomState()
        self.spare_memory: list[memory.SpareMemory] = []
        add_names(options["model"].get_base_model())
        super().__init__(**options)
        # TRL has just turned it on; transformers does so again when training begins and loses the first hook.
        self.model.get_base_model().disable_input_require_grads()
        self.add_callback(_NoGradientOfEmbeddings())
        self.remove_callback(PrinterCallback)
        adapter.trainable_to_float32(self.model)

    def say(self, line: str) -> None:
        """Add a line to the job's log."""
        self._send(Happened(event=Log(message=line)))

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward over one batch, in several passes where memory is short.

        Returns the batch's loss. Raises OutOfMemory where a single row does not fit.
        """
        if self._step != self.state.global_step:
            self._step, self._step_batches = self.state.global_step, []
            self._random_before_step = memory.RandomState()
        self._step_batches.append(inputs)
        self.counters.add_tokens(count_tokens(inputs))
        loss = _unless_out_of_memory(lambda: self._pass_over([inputs], model, num_items_in_batch))
        while loss is None:
            self._reset_step(model)
            loss = _unless_out_of_memory(
                lambda: self._pass_over(self._step_batches, model, num_items_in_batch)
            )
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The mean loss of the learned tokens; metrics stay on the device until `log`."""
        scores = self.score(inputs)
        tokens = max(1, len(scores.log_probs_N))
        divisor = tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).clamp(min=1)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["entropy"].append(scores.entropy_N.sum() / tokens)
        metrics["mean_token_accuracy"].append(scores.is_likeliest_N.sum() / tokens)
        mean: torch.Tensor = -scores.log_prob_sum / divisor
        if scores.balancing is None:
            return mean
        metrics["aux_loss"].append(scores.balancing.detach())
        # A mean over a pass, so that of a step is the mean over its passes.
        passes = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        return mean + scores.balancing / passes

    def score(self, batch: Batch) -> TokenScores:
        """The scores of a batch's learned tokens, in the job's mixed precision."""
        with self.accelerator.autocast():
            return loss.score(self.model.get_base_model(), batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics since the last call."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, values in metrics.items():
            metrics[name] = [float(value) for value in values]
        metrics["num_tokens"] = [float(self.counters.tokens)]
        super().log(logs, start_time)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        """The mean loss of an evaluation batch over its tokens, in several passes where memory is short."""
        predict = super().prediction_step

        def measure() -> torch.Tensor:
            parts = memory.split(inputs, self.counters.eval_rows_at_once)
            losses_P = torch.stack([predict(model, dict(part), *args, **kwargs)[0] for part in parts])
            tokens_P = torch.tensor([memory.count_trained(part) for part in parts], device=losses_P.device)
            return losses_P[0] if len(parts) == 1 else (losses_P * tokens_P).sum() / tokens_P.sum()

        loss = _unless_out_of_memory(measure)
        while loss is None:
            self.counters.eval_rows_at_once = self._halve(
                self.counters.eval_rows_at_once, [inputs], doing="An evaluation"
            )
            loss = _unless_out_of_memory(measure)
        return loss, None, None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate on the held-out rows; reports the phase."""
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
        if self.counters.exploded_steps:
            return  # It would replace a checkpoint from before the loss exploded.
        if not adapter.is_finite(self.model):
            step, total = self.state.global_step, self.state.max_steps
            raise not_finite("adapter", step, total, self.args.learning_rate)
        parent = Path(self.args.output_dir)
        with appearing(checkpoints.folder_of(parent, self.state.global_step)) as folder:
            adapter.save(self.model, folder)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            checkpoints.seal(folder, self.counters, self._history)
        checkpoints.remove_older(parent)
        self._send(Happened(event=Checkpoint(step=self.state.global_step)))

    def _pass_over(
        self, batches: Sequence[Batch], model: Any, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Add up the gradients of the batches. Returns the loss of the last one."""
        for batch in batches:
            # Without a token count for the whole step, the loss is the mean over this batch.
            items = memory.count_trained(batch) if num_items_in_batch is None else num_items_in_batch
            losses = []
            for part in memory.split(batch, self.counters.train_rows_at_once):
                losses.append(super().training_step(model, dict(part), items))
                self.counters.add_loss(losses[-1])
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _reset_step(self, model: Any) -> None:
        """Undo the present step; release spare memory or, where there is none, halve the rows of a pass."""
        released = [spare.release() for spare in self.spare_memory]
        if any(released):
            memory.free()
            self.say(
                f"Step {self.state.global_step + 1} ran out of memory and is repeated without the memory "
                "that only made it faster (CUDA graphs, dequantized weights)."
            )
        else:
            self.counters.train_rows_at_once = self._halve(
                self.counters.train_rows_at_once,
                self._step_batches,
                doing=f"Step {self.state.global_step + 1} of {self.state.max_steps}",
            )
        model.zero_grad()
        self.counters.drop_losses()
        self._random_before_step.restore()

    def _halve(self, rows_at_once: int | None, batches: Sequence[Batch], *, doing: str) -> int:
        """Half the number of rows that did not fit. Raises OutOfMemory where that was one."""
        memory.free()
        most = max(map(memory.count_rows, batches))
        tried = min(rows_at_once or most, most)
        if tried == 1:
            raise OutOfMemory(
                f"{doing} ran out of memory with a single sequence in a pass.",
                hint="Turn on training.gradient_checkpointing, or lower training.max_seq_length or lora.r.",
            )
        warning = Warn(
            code="out_of_memory",
            message=f"{doing} ran out of memory with {tried} sequences in a pass and is repeated with "
            f"{tried // 2}; all later ones do so too. The effective batch stays the same.",
        )
        self._send(Happened(event=warning))
        return tried // 2


def _unless_out_of_memory(compute: Callable[[], Computed]) -> Computed | None:
    """The result of `compute`, or None where memory ran out, so that the caller can free the failed pass."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.print_exc()
        return None
