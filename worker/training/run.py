"""The training process: one attempt at one job. `python -m worker.training.run <report_fd>`.

Prepares rows, loads the base model, trains an adapter, evaluates, saves and verifies it.
"""

import contextlib
import os
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from app.core.specs.job import QuantizationSpec
from app.core.specs.states import Phase
from worker import checkpoint_folders
from worker.models import base_model, serving_path
from worker.models.device import find_device
from worker.models.files import checkpoint_weights, description, fingerprint, location
from worker.planning import automatic_settings, batch_size, model_checks, model_shape, packing
from worker.planning.preference_examples import without_dropout
from worker.planning.sample_answers import NO_ANSWERS
from worker.processes.child import ParentLink
from worker.processes.reports import Ended, Outcome, TrainingRequest
from worker.training import adapter
from worker.training.attempt import Stopped, TrainingAttempt
from worker.training.automatic_settings import choose_training_settings
from worker.training.checkpoints import continuation, early_stopping
from worker.training.checkpoints.epoch_checkpoints import SaveEpochAdapters
from worker.training.construction import count_in_sequences, make_trainer
from worker.training.failures import explain
from worker.training.forward_check import refuse_broken
from worker.training.optimizations.apply import apply_optimizations, make_plan
from worker.training.optimizations.compile_ahead import CompileAhead
from worker.training.optimizations.trial_records import TrialRecords
from worker.training.output import folder as output, verification
from worker.training.preferences.dropout import turn_off_dropout
from worker.training.preferences.reference import compute_reference
from worker.training.preferences.trainer import PreferenceTrainer
from worker.training.progress import library_log
from worker.training.progress.callbacks import Send
from worker.training.progress.counters import Counters
from worker.training.ranks import divided_base
from worker.training.ranks.smaller_passes import MemoryRanOut
from worker.training.ranks.world import ALONE, RankLost, World
from worker.training.rows import PreparedRows, prepare_rows
from worker.training.samples.final_evaluation import evaluate_against_base
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


def run(request: TrainingRequest, send: Send, asked_to_stop: threading.Event, world: World = ALONE) -> Ended:
    """Run one attempt, or a rank's part of it. Returns its last report. Raises RankLost and MemoryRanOut."""
    try:
        train(TrainingAttempt(request, find_device(), send, asked_to_stop, world))
    except Stopped:
        return Ended(outcome=Outcome.STOPPED)
    except (RankLost, MemoryRanOut):
        raise
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return explain(error)
    return Ended(outcome=Outcome.FINISHED)


def train(attempt: TrainingAttempt) -> None:
    """From the request to a verified adapter in the output folder. Raises Stopped and TunesmithError."""
    attempt = turn_off_lora_dropout(attempt)
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
    with attempt.world.first_before_others():
        folder = location.add_weights(request.spec.base_model, folder, request.models_folder, attempt.say)

    attempt.enter(Phase.LOADING)
    base_weights = fingerprint.take_fingerprint(folder)
    packed_length = max_length if request.spec.training.packing else None
    preferences = request.spec.preferences
    training, divides_base = choose_training_settings(
        attempt, planned, rows.measure(preferences), packed_length
    )
    attempt = replace(attempt, world=replace(attempt.world, divides_base=divides_base))
    plan = make_plan(attempt, model, count_in_sequences(training, preferences), request.path)
    compiling = CompileAhead(plan, model, device)
    newest = find_checkpoint(attempt)
    model, base_biases = load(attempt, folder)
    trainer = make_trainer(
        attempt, model, tokenizer, rows, training, packed_length=packed_length, newest=newest
    )

    sampler = None
    if divides_base:
        attempt.say(NO_ANSWERS)
    elif attempt.world.is_first:
        sampler = make_sampler(attempt, trainer, tokenizer, rows.held_out, folder)
        trainer.add_callback(sampler)
    if attempt.world.is_first and request.spec.training.keep_checkpoints:
        trainer.add_callback(
            SaveEpochAdapters(
                attempt,
                tokenizer,
                lambda: output.make_record(attempt, base_weights, tokenizer, rows, trainer),
            )
        )

    attempt.enter(Phase.TRAINING)
    records = TrialRecords(request.trials_folder, base_weights) if request.trials_folder else None
    compiling.wait()
    with apply_optimizations(attempt, trainer, plan, records):
        if isinstance(trainer, PreferenceTrainer):
            compute_reference(attempt, trainer)
        step, epoch = run_trainer(attempt, trainer, newest, sampler)
    if not divides_base:
        attempt = replace(attempt, world=attempt.world.leave())
        if not attempt.world.is_first:
            return  # Rank 0 alone has the output, and the others end before it.
        evaluate_against_base(
            attempt, trainer, tokenizer, rows.held_out, base_biases, folder=folder, step=step, epoch=epoch
        )
    save(attempt, trainer, tokenizer, rows, base_weights, folder)
    attempt.world.leave()


def save(
    attempt: TrainingAttempt,
    trainer: AdapterTrainer,
    tokenizer: PreTrainedTokenizerBase,
    rows: PreparedRows,
    base_weights: str,
    folder: Path,
) -> None:
    """Write the adapter and verify it: by rank 0, or by all ranks where they divide the base model.

    Raises Stopped, TemplateMismatch, AdapterInert and LossNotFinite.
    """
    attempt.enter(Phase.SAVING)
    output_folder = attempt.request.output_folder
    record = output.make_record(attempt, base_weights, tokenizer, rows, trainer)
    with attempt.world.first_before_others():
        if attempt.world.is_first:
            size_bytes = output.write(output_folder, trainer.model, tokenizer, record)
            attempt.say(f"The adapter is saved: {size_bytes / 1e6:.1f} MB.")

    attempt.enter(Phase.VERIFYING)
    moment = attempt.request.submitted_at
    verification.verify_prompts(output_folder, rows.samples, record.chat_template.sha256, moment=moment)
    base = unload_adapter(attempt, trainer, folder)
    verification.verify_weights(base, output_folder, rows.train[0])
    attempt.say(
        f"Loaded afresh, the adapter changes what the model says, and {len(rows.samples)} rows come out as "
        "they were trained on."
    )


def turn_off_lora_dropout(attempt: TrainingAttempt) -> TrainingAttempt:
    """The attempt at the job as it is trained: preferences are compared without dropout."""
    spec = attempt.request.spec
    changed = without_dropout(spec)
    if changed is not spec:
        attempt.say(f"Dropout (lora.dropout {spec.lora.dropout:g}) is off: {spec.method} compares answers.")
    return replace(attempt, request=attempt.request.model_copy(update={"spec": changed}))


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
    """The newest intact checkpoint, the same for all ranks; warns about damaged ones."""

    def report_damaged(step: int, damage: str) -> None:
        attempt.warn("checkpoint_damaged", checkpoint_folders.explain_damage(step, damage))

    newest = None
    if attempt.world.is_first:
        newest = checkpoint_folders.find_newest(attempt.checkpoints, report_damaged)
    # The name alone: ranks of other hosts have it in another folder.
    name = attempt.world.from_first(newest.name if newest else None)
    return attempt.checkpoints / name if name else None


def load(attempt: TrainingAttempt, folder: Path) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """The base model with a new adapter, or with a copy of the adapter that the job continues from.

    Also returns copies of the base model's biases that are trained.
    """
    spec, start = attempt.request.spec, attempt.request.continue_from
    quantization = automatic_settings.quantization(spec, attempt.device)
    if attempt.world.divides_base:
        model = load_divided(attempt, folder, quantization)
    else:
        base = base_model.load_model(folder, quantization, attempt.device)
        refuse_broken(base, folder)
        model = adapter.attach(base, spec)
    if spec.preferences:
        turn_off_dropout(model.get_base_model())
    base_biases = adapter.copy_trained_biases(model)
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
    return model, base_biases


def load_divided(attempt: TrainingAttempt, folder: Path, quantization: QuantizationSpec) -> PeftModel:
    """The base model with a new adapter, divided between the ranks.

    They load it one after the other: where its weights can't be mapped from their files, each needs memory of
    the host for all of them.
    """
    mesh = divided_base.make_mesh(attempt.world, attempt.device)
    with attempt.world.in_turn():
        base = base_model.load_model(folder, quantization, attempt.device, on_host=True)
        model = adapter.attach(base, attempt.request.spec)
        divided_base.divide(model, mesh, attempt.device)
    refuse_broken(base, folder)
    held, total = divided_base.count_held(model)
    attempt.say(f"A device holds {held / 1e6:,.2f} of {total / 1e6:,.2f} million weights between passes.")
    return model


def run_trainer(
    attempt: TrainingAttempt, trainer: AdapterTrainer, newest: Path | None, sampler: AnswerSampler | None
) -> tuple[int, float]:
    """Train from the newest checkpoint or from the start, then evaluate.

    Returns (step, epoch) of the adapter that the model has then, and that is saved. Raises Stopped.
    `sampler`: of rank 0.
    """
    patience = attempt.request.spec.training.early_stopping_patience
    counters = trainer.counters
    if newest:
        attempt.say(f"Going on from the checkpoint of step {checkpoint_folders.step_of(newest)}.")
    if newest and is_trained(newest, counters, patience):
        trainer.state = TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME))
        adapter.restore(trainer.model, newest)
    else:
        if newest is None:
            if sampler:
                sampler.start()
            attempt.stop_if_asked()
        draw_apart(attempt)
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    attempt.stop_if_asked()
    if trainer.eval_dataset is not None and counters.evaluated_step != trainer.state.global_step:
        trainer.evaluate()
    step, epochs = trainer.state.global_step, trainer.state.epoch or 0.0
    if patience:
        assert counters.best_step is not None
        epochs *= counters.best_step / step
        step = counters.best_step
        if attempt.world.is_first:
            best = early_stopping.folder_of(attempt.best_adapters, counters.best_step)
            adapter.restore(trainer.model, best)
        attempt.say(f"The adapter with the lowest evaluation loss, {counters.best_loss:.4f}, is kept.")
    if sampler:
        sampler.finish(step, epochs)
    return step, epochs


def draw_apart(attempt: TrainingAttempt) -> None:
    """Give each rank but the first a random state of its own: alike, they would drop out the same."""
    if not attempt.world.is_first:
        set_seed((attempt.request.spec.training.seed + attempt.world.rank) % 2**32)


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
