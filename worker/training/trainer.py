"""TRL's trainer, made to resume exactly, to checkpoint whole and to go on with less memory.

When a pass runs out of memory its optimizer step begins anew with half the rows in a pass and twice the
passes. The gradients of what was done of the step are dropped and its random numbers put back, so the step is
the one that smaller passes would have made anyway: weights, optimizer and order of rows know nothing of it.
(transformers' `auto_find_batch_size` begins the whole training anew, with a smaller effective batch.)
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
from worker.processes.reports import Advanced, Happened
from worker.training import adapter, memory
from worker.training.batches import EpochSampler, count_tokens, model_inputs
from worker.training.checkpoints import store as checkpoints
from worker.training.failures import is_out_of_memory
from worker.training.memory import Batch
from worker.training.progress.callbacks import Send
from worker.training.progress.counters import Counters
from worker.training.progress.history import History
from worker.training.progress.loss_guard import not_finite

Made = TypeVar("Made")


class _NoGradientOfEmbeddings(TrainerCallback):
    """TRL and transformers ask for a gradient of what is embedded, which only reentrant checkpoints need, and
    none here are: the first layer would compute it for nobody."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].get_base_model().disable_input_require_grads()


class AdapterTrainer(SFTTrainer):
    """Trains the adapter of a PeftModel.

    Some methods it replaces or calls are private to transformers; 5.17 to 5.23 have them.
    """

    def __init__(self, *, counters: Counters, history: History, send: Send, **options: Any) -> None:
        self.counters = counters
        self._history = history
        self._send = send
        self._step: int | None = None
        self._step_batches: list[Batch] = []
        self._random_before_step = memory.RandomState()
        self.spare_memory: list[memory.SpareMemory] = []
        super().__init__(**options)
        # Before training begins transformers asks as TRL just did, and would forget of the first hook.
        self.model.get_base_model().disable_input_require_grads()
        self.add_callback(_NoGradientOfEmbeddings())
        self.remove_callback(PrinterCallback)
        adapter.trainable_to_float32(self.model)

    def say(self, line: str) -> None:
        """A line in the job's log."""
        self._send(Happened(event=Log(message=line)))

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward over one batch, in as many passes as memory needs.

        Raises OutOfMemory where a single row is too much.
        """
        if self._step != self.state.global_step:
            self._step, self._step_batches = self.state.global_step, []
            self._random_before_step = memory.RandomState()
        self._step_batches.append(inputs)
        self.counters.add_tokens(count_tokens(inputs))
        loss = _unless_out_of_memory(lambda: self._pass_over([inputs], model, num_items_in_batch))
        while loss is None:
            self._begin_step_anew(model)
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
        """TRL's loss, without its three waits for the device in each pass: metrics are read when logged."""
        inputs = model_inputs(inputs)
        if self.aux_loss_enabled:
            loss: torch.Tensor = super().compute_loss(model, inputs, False, num_items_in_batch)
            return loss
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        tokens = outputs.label_mask.sum()
        divisor = tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        metrics = self._metrics["train" if self.model.training else "eval"]
        with torch.no_grad():
            metrics["entropy"].append(outputs.entropy.sum() / tokens.clamp(min=1))
            metrics["mean_token_accuracy"].append(outputs.is_top1.sum() / tokens.clamp(min=1))
        return -outputs.log_probs.sum() / divisor.clamp(min=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what TRL gathered since the last time."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, values in metrics.items():
            metrics[name] = [float(value) for value in values]
        metrics["num_tokens"] = [float(self.counters.tokens)]
        super().log(logs, start_time)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of one batch held out: the mean over its tokens, in as many passes as memory needs."""
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
        if self.counters.exploded_steps:
            return  # It would take the place of one from before the loss exploded.
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
        """Add the gradients of the batches; answers the loss of the last one."""
        for batch in batches:
            # Where the trainer counts no tokens for the whole step, the loss is the mean over this batch.
            items = memory.count_trained(batch) if num_items_in_batch is None else num_items_in_batch
            losses = []
            for part in memory.split(batch, self.counters.train_rows_at_once):
                losses.append(super().training_step(model, dict(part), items))
                self.counters.add_loss(losses[-1])
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _begin_step_anew(self, model: Any) -> None:
        """Forget what was done of the present step; from now on, no spare memory is used, or fewer rows."""
        released = [spare.release() for spare in self.spare_memory]
        if any(released):
            memory.free()
            self.say(
                f"Step {self.state.global_step + 1} ran out of memory and is repeated without the memory "
                "that only made it faster (recorded graphs, unpacked weights)."
            )
        else:
            self.counters.train_rows_at_once = self._halve(
                self.counters.train_rows_at_once,
                self._step_batches,
                doing=f"Step {self.state.global_step + 1} of {self.state.max_steps}",
            )
        model.zero_grad()
        self.counters.forget_losses()
        self._random_before_step.restore()

    def _halve(self, rows_at_once: int | None, batches: Sequence[Batch], *, doing: str) -> int:
        """Half the rows that did not fit. Raises OutOfMemory where that was one."""
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


def _unless_out_of_memory(make: Callable[[], Made]) -> Made | None:
    """What `make` makes, or None: only when this has returned can the memory of the failed pass be freed."""
    try:
        return make()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.print_exc()
        return None
