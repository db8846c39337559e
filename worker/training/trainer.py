"""TRL's trainer with exact resuming, atomic checkpoints and recovery from running out of memory.

When a pass runs out of memory, its optimizer step is repeated with half the rows in a pass and twice the
passes. The step's gradients are dropped and its random state is restored, so weights, optimizer state and the
order of rows are those that smaller passes would have given. (transformers' `auto_find_batch_size` restarts
the whole training, with a smaller effective batch.)
"""

import math
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

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
from worker import checkpoint_folders
from worker.atomic_folders import appearing
from worker.decoder.random_state import RandomState
from worker.models.device import is_out_of_memory, on_device
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
from worker.training.ranks import random_states
from worker.training.ranks.agreement import RankAgreement
from worker.training.ranks.divided_base import fill_up
from worker.training.ranks.gradients import add_up_gradients
from worker.training.ranks.row_share import RowShare, is_filler
from worker.training.ranks.smaller_passes import MemoryRanOut, SmallerPasses

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

    def __init__(
        self,
        *,
        counters: Counters,
        history: History,
        send: Send,
        agreement: RankAgreement,
        **options: Any,
    ) -> None:
        self.counters = counters
        self.world = agreement.world
        self._agreement = agreement
        self._share = 1.0  # of the step's mean loss, which that of this rank's batches is multiplied with
        self._eval_losses: list[torch.Tensor] = []
        self._history = history
        self._send = send
        self._step: int | None = None
        self._step_batches: list[Batch] = []
        self._random_before_step = RandomState()
        self.spare_memory: list[memory.SpareMemory] = []
        self.decoder: loss.Decoder | None = None  # in place of the model's own
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

    def get_batch_samples(
        self, epoch_iterator: Iterable[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """This rank's batches of a step, and by how much the losses of all ranks' are divided."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.world.is_alone:
            return batches, items
        step = self._agreement.agree(
            items=sum(map(self._count_items, batches)),
            batches=sum(not is_filler(batch) for batch in batches),
        )
        self._share = len(batches) / max(1, step.batches)
        if items is not None:
            items = on_device(torch.tensor(step.items), device)
        return batches, items

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward over one batch, in several passes where memory is short.

        Returns the batch's loss. Raises OutOfMemory where a single row does not fit.
        """
        if self._step != self.state.global_step:
            self._step, self._step_batches = self.state.global_step, []
            self._random_before_step = RandomState()
        self._step_batches.append(inputs)
        self.counters.add_tokens(count_tokens(inputs) * (not is_filler(inputs)))
        loss = unless_out_of_memory(lambda: self._pass_over([inputs], model, num_items_in_batch))
        while loss is None:
            self._reset_step(model)
            loss = unless_out_of_memory(
                lambda: self._pass_over(self._step_batches, model, num_items_in_batch)
            )
        if not self.world.is_alone and self.accelerator.sync_gradients:
            self._add_up_gradients(num_items_in_batch)
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
        mean: torch.Tensor = -scores.log_prob_sum / divisor
        if is_filler(inputs):
            return mean
        metrics["entropy"].append(scores.entropy_N.sum() / tokens)
        metrics["mean_token_accuracy"].append(scores.is_likeliest_N.sum() / tokens)
        if scores.balancing is None:
            return mean
        metrics["aux_loss"].append(scores.balancing.detach())
        # A mean over a pass, so that of a step is the mean over its passes.
        return mean + scores.balancing / self._count_passes(num_items_in_batch)

    def score(self, batch: Batch) -> TokenScores:
        """The scores of a batch's learned tokens, in the job's mixed precision."""
        with self.accelerator.autocast():
            return loss.score(self.model.get_base_model(), batch, self.decoder)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics since the last call; of several ranks, those of all."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, values in metrics.items():
            metrics[name] = [float(value) for value in values]
        if not self.world.is_alone:
            self._gather_metrics(metrics, logs)
        metrics["num_tokens"] = [float(self.counters.tokens)]
        super().log(logs, start_time)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        """The mean loss of an evaluation batch over its tokens, in several passes where memory is short."""
        predict = super().prediction_step

        def measure() -> torch.Tensor:
            rows = self.counters.eval_rows_at_once
            parts = self._fill_up(memory.split(inputs, rows), rows, self.args.eval_batch_size)
            losses_P = torch.stack([predict(model, dict(part), *args, **kwargs)[0] for part in parts])
            tokens_P = torch.tensor([memory.count_trained(part) for part in parts], device=losses_P.device)
            return (
                losses_P[0] if len(parts) == 1 else (losses_P * tokens_P).sum() / tokens_P.sum().clamp(min=1)
            )

        loss = unless_out_of_memory(measure)
        while loss is None:
            self.counters.eval_rows_at_once = self._halve(
                self.counters.eval_rows_at_once, [inputs], doing="An evaluation", field="eval_rows"
            )
            loss = unless_out_of_memory(measure)
        if not self.world.is_alone and not is_filler(inputs):
            self._eval_losses.append(loss)
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
        lengths = [len(ids) for ids in rows["input_ids"]]
        if not self.world.is_alone:
            lengths.pop()  # the filler
        of_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.world.size
        order = EpochSampler(lengths, seed=self.args.data_seed, group_size=of_a_step if grouped else None)
        return self._share_rows(order, self.args.train_batch_size, len(lengths))

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        if self.world.is_alone:
            sampler: Sampler[int] | None = super()._get_eval_sampler(eval_dataset)
            return sampler
        rows = len(eval_dataset) - 1  # the last one is the filler
        order: Sampler[int] = super()._get_eval_sampler(eval_dataset.select(range(rows)))
        return self._share_rows(order, self.args.eval_batch_size, rows)

    def _share_rows(self, order: Sampler[int], batch: int, filler: int) -> Sampler[int]:
        return order if self.world.is_alone else RowShare(order, self.world, batch=batch, filler=filler)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.counters.exploded_steps:
            return  # It would replace a checkpoint from before the loss exploded.
        if not adapter.is_finite(self.model):
            step, total = self.state.global_step, self.state.max_steps
            raise not_finite("adapter", step, total, self.args.learning_rate)
        states = self.world.gather(
            {} if self.world.is_first else random_states.read_random_state(self._save_rng_state)
        )
        if not self.world.is_first:
            return
        parent = Path(self.args.output_dir)
        with appearing(checkpoint_folders.folder_of(parent, self.state.global_step)) as folder:
            adapter.save(self.model, folder)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            random_states.write_random_states(folder, states)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            checkpoints.seal(folder, self.counters, self._history)
        checkpoint_folders.remove_older(parent)
        self._send(Happened(event=Checkpoint(step=self.state.global_step)))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        own = None if checkpoint is None else str(random_states.folder_of(Path(checkpoint), self.world.rank))
        super()._load_rng_state(own)

    def _gather_metrics(self, metrics: dict[str, list[float]], logs: dict[str, float]) -> None:
        """Replace metrics by the means over all ranks' batches; also the loss of an evaluation."""
        losses = self._eval_losses if "eval_loss" in logs else []
        mine = {name: list(values) for name, values in metrics.items() if name != "num_tokens"}
        found = self.world.gather((mine, [float(loss) for loss in losses]))
        for name in {name for of_rank, _ in found for name in of_rank}:
            metrics[name] = [value for of_rank, _ in found for value in of_rank.get(name, [])]
        all_losses = [loss for _, of_rank in found for loss in of_rank]
        if all_losses:
            logs["eval_loss"] = sum(all_losses) / len(all_losses)
        self._eval_losses = []

    def _count_passes(self, num_items_in_batch: torch.Tensor | int | None) -> float:
        """By how many the mean over a pass is divided, so that a step of all ranks has the mean over its
        passes; 1 where that is done to the whole loss."""
        return 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps / self._share

    def _add_up_gradients(self, num_items_in_batch: torch.Tensor | int | None) -> None:
        # Without a divisor for the whole step, the loss is the mean over this rank's batches.
        scale = self._share if num_items_in_batch is None else 1.0
        add_up_gradients(list(self.model.parameters()), self.world, scale=scale)
        if scale != 1.0:
            self.counters.scale_losses(scale)

    def _pass_over(
        self, batches: Sequence[Batch], model: Any, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Add up the gradients of the batches. Returns the loss of the last one."""
        for batch in batches:
            # Without a token count for the whole step, the loss is the mean over this batch.
            items = self._count_items(batch) if num_items_in_batch is None else num_items_in_batch
            losses = []
            for part in self._split(batch, self.counters.train_rows_at_once):
                losses.append(super().training_step(model, dict(part), items))
                self.counters.add_loss(losses[-1])
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _count_items(self, batch: Batch) -> int:
        """How many losses the loss of a batch is the mean of."""
        return memory.count_trained(batch)

    def _split(self, batch: Batch, rows: int | None) -> list[Batch]:
        """The passes over a batch, of at most `rows` sequences each, whose losses add up to the batch's."""
        parts = memory.split(batch, rows)
        return self._fill_up(parts, rows, self.args.train_batch_size)

    def _fill_up(self, parts: list[Batch], rows: int | None, batch_size: int) -> list[Batch]:
        """As many passes over a batch as all ranks make, where these must be equally many."""
        if rows is None or not self.world.divides_base:
            return parts
        return fill_up(parts, math.ceil(batch_size / rows))

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
                field="train_rows",
            )
        model.zero_grad()
        self.counters.drop_losses()
        self._random_before_step.restore()

    def _halve(
        self,
        rows_at_once: int | None,
        batches: Sequence[Batch],
        *,
        doing: str,
        field: Literal["train_rows", "eval_rows"],
    ) -> int:
        """Half the number of rows that did not fit. Raises OutOfMemory where that was one, and MemoryRanOut
        where ranks divide the base model: this one alone can't repeat a pass."""
        memory.free()
        most = max(map(memory.count_rows, batches))
        tried = min(rows_at_once or most, most)
        if tried == 1:
            raise OutOfMemory(
                f"{doing} ran out of memory with a single sequence in a pass.",
                hint="Turn on training.gradient_checkpointing, or lower training.max_seq_length or lora.r.",
            )
        half = tried // 2
        reason = (
            f"{doing} ran out of memory with {tried} sequences in a pass and is repeated with {half}; all "
            "later ones do so too. The effective batch stays the same."
        )
        if self.world.divides_base:
            raise MemoryRanOut(SmallerPasses(reason=reason, **{field: half}))
        self._send(Happened(event=Warn(code="out_of_memory", message=reason)))
        return half


def unless_out_of_memory(compute: Callable[[], Computed]) -> Computed | None:
    """The result of `compute`, or None where memory ran out, so that the caller can free the failed pass."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.print_exc()
        return None
