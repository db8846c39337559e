"""The trainer of a job: its datasets, TRL's settings, its callbacks, and the class for the job's method."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from app.core.specs.job import TrainingSpec
from app.core.specs.methods import PreferenceSpec
from app.core.specs.tracking import Tracker
from worker import checkpoint_folders
from worker.models.files import vocabulary
from worker.planning.preference_examples import count_sequences
from worker.processes.reports import Happened
from worker.training import config
from worker.training.attempt import TrainingAttempt
from worker.training.batches import Collator, make_dataset
from worker.training.checkpoints import store as checkpoints
from worker.training.checkpoints.early_stopping import StopEarly
from worker.training.preferences import examples
from worker.training.preferences.objectives import make_objective
from worker.training.preferences.trainer import PreferenceTrainer
from worker.training.progress.callbacks import Reporter, StopOnRequest
from worker.training.progress.counters import Counters
from worker.training.progress.history import History
from worker.training.progress.loss_guard import LossGuard
from worker.training.ranks.agreement import RankAgreement
from worker.training.ranks.row_share import add_filler
from worker.training.ranks.world import World
from worker.training.rows import PreferenceRows, PreparedRows
from worker.training.trainer import AdapterTrainer


def make_trainer(
    attempt: TrainingAttempt,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: PreparedRows,
    training: TrainingSpec,
    *,
    packed_length: int | None,
    newest: Path | None,
) -> AdapterTrainer:
    """The trainer, with the counters and history of the newest checkpoint where there is one.

    `training`: without `auto` for batch size and checkpointing.
    """
    preferences = attempt.request.spec.preferences
    computed = count_in_sequences(training, preferences)
    options: dict[str, Any] = {
        **_progress(attempt, model, newest),
        "model": model,
        "args": config.trainer_config(computed, attempt.device, attempt.checkpoints),
        "data_collator": Collator(vocabulary.padding_id(tokenizer)),
        "processing_class": vocabulary.with_padding(tokenizer),
    }
    if preferences and rows.preferences:
        return _make_preference_trainer(attempt.world, preferences, rows.preferences, training, options)
    train_set, eval_set = (
        add_filler(make_dataset(part, packed_length=packed_length), attempt.world) if part else None
        for part in (rows.train, rows.held_out)
    )
    return AdapterTrainer(
        train_dataset=train_set,
        eval_dataset=eval_set,
        **options,
    )


def count_in_sequences(training: TrainingSpec, preferences: PreferenceSpec | None) -> TrainingSpec:
    """The settings with batches of so many sequences as examples of the method have in all.

    The order of preferences is that of their examples, so sequences are not grouped by length once more.
    """
    if preferences is None:
        return training
    sequences, size = count_sequences(preferences), training.per_device_train_batch_size
    assert size != "auto"
    changes = {
        "per_device_train_batch_size": sequences * size,
        "per_device_eval_batch_size": sequences * training.per_device_eval_batch_size,
        "group_by_length": False,
    }
    return training.model_copy(update=changes)


def _make_preference_trainer(
    world: World,
    preferences: PreferenceSpec,
    rows: PreferenceRows,
    training: TrainingSpec,
    options: dict[str, Any],
) -> PreferenceTrainer:
    train_set, order = examples.arrange_training(rows.train, preferences, training, ranks=world.size)
    eval_size = training.per_device_eval_batch_size
    return PreferenceTrainer(
        objective=make_objective(preferences),
        order=order,
        train_dataset=add_filler(train_set, world),
        eval_dataset=add_filler(examples.make_dataset(rows.held_out, preferences, batch=eval_size), world)
        if rows.held_out
        else None,
        **options,
    )


def _progress(attempt: TrainingAttempt, model: PeftModel, newest: Path | None) -> dict[str, Any]:
    """Counters, history and callbacks; sends the points that an interrupted attempt sent in vain."""
    counters = checkpoints.read_counters(newest) if newest else Counters()
    counters.limit_rows(attempt.request.train_rows_at_once, attempt.request.eval_rows_at_once)
    history = checkpoints.read_history(newest) if newest else History()
    for point in history.find_unrecorded(attempt.request.last_point):
        attempt.send(Happened(event=point))
    guard = LossGuard(counters, model.get_base_model().config.get_text_config().vocab_size)
    reporter = Reporter(attempt.send, counters, history, guard, attempt.device, world=attempt.world)
    agreement = RankAgreement(attempt.world, attempt.asked_to_stop, counters, attempt.warn)
    callbacks: list[TrainerCallback] = [
        reporter,
        StopOnRequest(agreement.stop, reporter),
    ]
    if attempt.world.is_first and Tracker.TENSORBOARD in attempt.request.spec.report_to:
        callbacks.append(open_tensorboard(attempt, newest))
    patience = attempt.request.spec.training.early_stopping_patience
    if patience:
        best = attempt.best_adapters if attempt.world.is_first else None
        callbacks.append(StopEarly(attempt.send, counters, patience, best))
    return {
        "counters": counters,
        "history": history,
        "send": attempt.send,
        "agreement": agreement,
        "callbacks": callbacks,
    }


def open_tensorboard(attempt: TrainingAttempt, newest: Path | None) -> TensorBoardCallback:
    """Write TensorBoard files; points that an interrupted attempt wrote after its checkpoint are purged."""
    folder = str(attempt.request.job_folder / "tensorboard")
    callback = TensorBoardCallback(
        SummaryWriter(log_dir=folder, purge_step=checkpoint_folders.step_of(newest) + 1 if newest else 0)
    )
    # The callback closes its writer after training; an evaluation after that opens a new one in this folder.
    callback.logging_dir = folder
    return callback
