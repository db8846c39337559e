"""The training process: one attempt at one job. `python -m worker.training.run <report_fd>`.

Prepares rows, loads the base model, trains an adapter, evaluates, saves and verifies it.
"""

import contextlib
import os
import sys
import threading
import traceback
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig

from app.core.specs.states import Phase
from worker.models import base_model, serving_path
from worker.models.device import find_device
from worker.models.files import checkpoint_weights, description, fingerprint, location, vocabulary
from worker.planning import automatic_settings, batch_size, model_checks, model_shape, packing
from worker.processes.child import ParentLink
from worker.processes.reports import Ended, Happened, Outcome, TrainingRequest
from worker.training import adapter, config
from worker.training.attempt import Stopped, TrainingAttempt
from worker.training.automatic_settings import choose_training_settings
from worker.training.batches import Collator, make_dataset
from worker.training.checkpoints import continuation, early_stopping, store as checkpoints
from worker.training.checkpoints.early_stopping import StopEarly
from worker.training.checkpoints.epoch_checkpoints import SaveEpochAdapters
from worker.training.failures import explain
from worker.training.forward_check import refuse_broken
from worker.training.optimizations.apply import apply_optimizations
from worker.training.output import folder as output, verification
from worker.training.progress import library_log
from worker.training.progress.callbacks import Reporter, Send, StopOnRequest
from worker.training.progress.counters import Counters
from worker.training.progress.history import History
from worker.training.progress.loss_guard import LossGuard
from worker.training.rows import prepare_rows
from worker.training.samples.sampler import AnswerSampler, make_sampler
from worker.training.trainer import AdapterTrainer
from worker.training.waiting import wait_for_request


def main() -> None:
    """Run the attempt that the request on standard input describes."""
    link = ParentLink(int(sys.argv[1]))
    request = wait_for_request(link)
    asked_to_stop = threading.Event()
    link.watch(on_stop=asked_to_stop.set)
    library_log.attach(link.send)
    link.send(run(request, link.send, asked_to_stop))
    with contextlib.suppress(OSError):  # the log's disk may be full
        sys.stdout.flush()
        sys.stderr.flush()
    # The thread that reads standard input holds its lock, on which the interpreter's own exit would abort.
    os._exit(0)


def run(request: TrainingRequest, send: Send, asked_to_stop: threading.Event) -> Ended:
    """Run one attempt. Returns its last report."""
    try:
        train(TrainingAttempt(request, find_device(), send, asked_to_stop))
    except Stopped:
        return Ended(outcome=Outcome.STOPPED)
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return explain(error)
    return Ended(outcome=Outcome.FINISHED)


def train(attempt: TrainingAttempt) -> None:
    """From the request to a verified adapter in the output folder. Raises Stopped and TunesmithError."""
    request, device = attempt.request, attempt.device
    attempt.enter(Phase.PREPARING)
    automatic_settings.mixed_precision(request.spec.training, device)
    automatic_settings.check_modules_to_save(request.spec, device)
    if slow := automatic_settings.find_slow_products(request.spec, device):
        attempt.warn("slow_products", slow)
    folder = location.locate_description(request.spec.base_model, request.models_folder)
    tokenizer = description.load_tokenizer(folder)
    max_length = automatic_settings.max_seq_length(
        request.spec.training, description.read_context_length(folder)
    )
    model = description.build_empty(folder)
    planned = check_model(attempt, folder, model, tokenizer)
    rows = prepare_rows(attempt, tokenizer, folder, max_length, model_shape.count_embedding_rows(model))
    folder = location.add_weights(request.spec.base_model, folder, request.models_folder, attempt.say)

    attempt.enter(Phase.LOADING)
    base_weights = fingerprint.take_fingerprint(folder)
    packed_length = max_length if request.spec.training.packing else None
    training = choose_training_settings(attempt, planned, rows.train, packed_length)
    settings = config.trainer_config(training, device, attempt.checkpoints)
    newest = find_checkpoint(attempt)
    trainer = make_trainer(
        attempt,
        load(attempt, folder),
        tokenizer,
        settings,
        newest=newest,
        train_set=make_dataset(rows.train, packed_length=packed_length),
        eval_set=make_dataset(rows.held_out, packed_length=packed_length) if rows.held_out else None,
    )

    sampler = make_sampler(attempt, trainer, tokenizer, rows.held_out, folder)
    trainer.add_callback(sampler)
    if request.spec.training.keep_checkpoints:
        trainer.add_callback(
            SaveEpochAdapters(
                attempt,
                tokenizer,
                lambda: output.make_record(attempt, base_weights, tokenizer, rows, trainer),
            )
        )

    attempt.enter(Phase.TRAINING)
    with apply_optimizations(attempt, trainer, training, request.path):
        run_trainer(attempt, trainer, newest, sampler)

    attempt.enter(Phase.SAVING)
    record = output.make_record(attempt, base_weights, tokenizer, rows, trainer)
    size_bytes = output.write(request.output_folder, trainer.model, tokenizer, record)
    attempt.say(f"The adapter is saved: {size_bytes / 1e6:.1f} MB.")

    attempt.enter(Phase.VERIFYING)
    verification.verify_prompts(
        request.output_folder, rows.samples, record.chat_template.sha256, moment=request.submitted_at
    )
    verification.verify_weights(
        unload_adapter(attempt, trainer, folder), request.output_folder, rows.train[0]
    )
    attempt.say(
        f"Loaded afresh, the adapter changes what the model says, and {len(rows.samples)} rows come out as "
        "they were trained on."
    )


def check_model(
    attempt: TrainingAttempt, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> batch_size.PlannedJob:
    """What is known of the job before the weights are loaded; warns of what the model's structure says.

    The base model is on the meta device; it gets the adapter. Raises ModelUnreadable, BadTarget,
    InvalidRequest.
    """
    spec = attempt.request.spec
    for finding in model_checks.check_model(model, spec, tokenizer):
        attempt.warn(finding.code, finding.message)
    if location.has_weights(folder):
        checkpoint_weights.check_stored(folder, model)
    planned = batch_size.PlannedJob.read(spec, attempt.device, model, attempt.request.path)
    if planned.serving_obstacles:
        attempt.say(serving_path.explain(planned.serving_obstacles))
    return planned


def find_checkpoint(attempt: TrainingAttempt) -> Path | None:
    """The newest intact checkpoint; warns about damaged ones."""
    return checkpoints.find_newest(
        attempt.checkpoints,
        lambda step, damage: attempt.warn(
            "checkpoint_damaged",
            f"The checkpoint of step {step} is damaged and was removed: {damage}. The job goes on from the "
            "one before it, or else from the start.",
        ),
    )


def load(attempt: TrainingAttempt, folder: Path) -> PeftModel:
    """The base model with a new adapter, or with a copy of the adapter that the job continues from."""
    spec, start = attempt.request.spec, attempt.request.continue_from
    quantization = automatic_settings.quantization(spec, attempt.device)
    base = base_model.load_model(folder, quantization, attempt.device)
    refuse_broken(base, folder)
    model = adapter.attach(base, spec)
    if start:
        fingerprint.check_base(start, folder, spec.base_model)
        continuation.start_from(model, start)
        attempt.say(f"The adapter starts from the weights of {spec.continue_from}.")
    trained, total = model.get_nb_trainable_parameters()
    kind = (
        f"4-bit {spec.quantization.bnb_4bit_quant_type}" if spec.quantization.load_in_4bit else "unquantized"
    )
    attempt.say(
        f"{spec.base_model} is loaded, {kind}, on {attempt.device.name}: {total / 1e6:,.1f} million weights, "
        f"{trained / 1e6:,.2f} million of them trained."
    )
    if spec.training.packing and not packing.refuse_leaking(model.get_base_model().config):
        packing.refuse_leaking_model(model)
    return model


def make_trainer(
    attempt: TrainingAttempt,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: SFTConfig,
    *,
    newest: Path | None,
    train_set: Dataset,
    eval_set: Dataset | None,
) -> AdapterTrainer:
    """The trainer, with the counters and history of the newest checkpoint where there is one."""
    counters = checkpoints.read_counters(newest) if newest else Counters()
    history = checkpoints.read_history(newest) if newest else History()
    for point in history.find_unrecorded(attempt.request.last_point):
        attempt.send(Happened(event=point))
    guard = LossGuard(counters, model.get_base_model().config.get_text_config().vocab_size)
    reporter = Reporter(attempt.send, counters, history, guard, attempt.device)
    callbacks = [
        reporter,
        StopOnRequest(attempt.asked_to_stop, reporter),
        open_tensorboard(attempt, newest),
    ]
    patience = attempt.request.spec.training.early_stopping_patience
    if patience:
        callbacks.append(StopEarly(attempt.send, counters, patience, attempt.best_adapters))
    return AdapterTrainer(
        counters=counters,
        history=history,
        send=attempt.send,
        model=model,
        args=settings,
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=Collator(vocabulary.padding_id(tokenizer)),
        processing_class=vocabulary.with_padding(tokenizer),
        callbacks=callbacks,
    )


def open_tensorboard(attempt: TrainingAttempt, newest: Path | None) -> TensorBoardCallback:
    """Write TensorBoard files; points that an interrupted attempt wrote after its checkpoint are purged."""
    folder = str(attempt.request.job_folder / "tensorboard")
    callback = TensorBoardCallback(
        SummaryWriter(log_dir=folder, purge_step=checkpoints.step_of(newest) + 1 if newest else 0)
    )
    # The callback closes its writer after training; an evaluation after that opens a new one in this folder.
    callback.logging_dir = folder
    return callback


def run_trainer(
    attempt: TrainingAttempt, trainer: AdapterTrainer, newest: Path | None, sampler: AnswerSampler
) -> None:
    """Train from the newest checkpoint or from the start, then evaluate. Raises Stopped."""
    patience = attempt.request.spec.training.early_stopping_patience
    counters = trainer.counters
    if newest:
        attempt.say(f"Going on from the checkpoint of step {checkpoints.step_of(newest)}.")
    if newest and is_trained(newest, counters, patience):
        trainer.state = TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME))
        adapter.restore(trainer.model, newest)
    else:
        if newest is None:
            sampler.start()
            if attempt.asked_to_stop.is_set():
                raise Stopped
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if attempt.asked_to_stop.is_set():
        raise Stopped
    if trainer.eval_dataset is not None and counters.evaluated_step != trainer.state.global_step:
        trainer.evaluate()
    step, epochs = trainer.state.global_step, trainer.state.epoch or 0.0
    if patience:
        assert counters.best_step is not None
        epochs *= counters.best_step / step
        step = counters.best_step
        adapter.restore(trainer.model, early_stopping.folder_of(attempt.best_adapters, counters.best_step))
        attempt.say(f"The adapter with the lowest evaluation loss, {counters.best_loss:.4f}, is kept.")
    sampler.finish(step, epochs)


def is_trained(newest: Path, counters: Counters, patience: int | None) -> bool:
    """Whether an interrupted attempt had finished its last step: the trainer would make one more."""
    if patience and counters.evaluations_without_gain >= patience:
        return True
    state = TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME))
    return state.global_step >= state.max_steps


def unload_adapter(attempt: TrainingAttempt, trainer: AdapterTrainer, folder: Path) -> PreTrainedModel:
    """The base model without the trained adapter; loaded again where weights of its own were trained."""
    lora = attempt.request.spec.lora
    if lora.bias == "none" and not lora.modules_to_save:
        return trainer.model.unload()
    trainer.model.cpu()
    quantization = automatic_settings.quantization(attempt.request.spec, attempt.device)
    return base_model.load_model(folder, quantization, attempt.device)


if __name__ == "__main__":
    main()
