"""The training child: one attempt at one job, top to bottom. `python -m worker.training.run <report_fd>`.

Prepares rows, loads the base model, trains an adapter, evaluates, saves and verifies it, and tells the worker.
"""

import os
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import TensorBoardCallback
from trl import SFTConfig

from app.core import datasets
from app.core.datasets import DatasetFormat
from app.core.events import Log, Warn
from app.core.states import Phase
from worker import base_model
from worker.chat_templates import ensure_template
from worker.child import ParentLink
from worker.device import Device, find_device, peak_memory_bytes
from worker.reports import Advanced, Ended, Happened, Outcome, TrainingRequest
from worker.training import adapter, checkpoints, config, library_log, output, proof
from worker.training.attention import refuse_leaking
from worker.training.batches import Collator, make_dataset
from worker.training.callbacks import Reporter, RowOrder, Send, StopEarly, StopWhenAsked
from worker.training.checkpoints import Counters
from worker.training.failures import explain
from worker.training.formatting import Formatted, TokenRow, format_rows, hold_out
from worker.training.trainer import AdapterTrainer

_LINES_SHOWN = 20
_CHAT = (DatasetFormat.MESSAGES, DatasetFormat.CONVERSATIONS, DatasetFormat.INSTRUCTION)


class Stopped(Exception):
    """The worker asked for a stop, and there is nothing left to save."""


@dataclass(frozen=True)
class Attempt:
    """What every part of the job needs."""

    request: TrainingRequest
    device: Device
    send: Send
    asked_to_stop: threading.Event

    def enter(self, phase: Phase) -> None:
        """Begin a phase. Raises Stopped: between phases nothing is half done."""
        if self.asked_to_stop.is_set():
            raise Stopped
        self.send(Advanced(phase=phase))

    def say(self, line: str) -> None:
        """A line in the job's log."""
        self.send(Happened(event=Log(message=line)))

    def warn(self, code: str, message: str) -> None:
        """Something that the person should know."""
        self.send(Happened(event=Warn(code=code, message=message)))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are, from one attempt to the next."""
        return self.request.job_folder / "checkpoints"

    @property
    def best_adapter(self) -> Path:
        """The adapter with the lowest evaluation loss so far, where training may stop early."""
        return self.request.job_folder / "best-adapter"


def main() -> None:
    """Run the attempt that the request on standard input describes."""
    link = ParentLink(int(sys.argv[1]))
    request = link.read_request(TrainingRequest)
    asked_to_stop = threading.Event()
    link.watch(on_stop=asked_to_stop.set)
    library_log.attach(link.send)
    link.send(run(request, link.send, asked_to_stop))
    sys.stdout.flush()
    sys.stderr.flush()
    # The thread that reads standard input holds its lock; the interpreter's own way out would abort over it.
    os._exit(0)


def run(request: TrainingRequest, send: Send, asked_to_stop: threading.Event) -> Ended:
    """One attempt; the answer is the report that ends it."""
    try:
        train(Attempt(request, find_device(), send, asked_to_stop))
    except Stopped:
        return Ended(outcome=Outcome.STOPPED)
    except Exception as error:
        traceback.print_exc()
        return explain(error, request.job_folder)
    return Ended(outcome=Outcome.FINISHED)


def train(attempt: Attempt) -> None:
    """From the request to a proven adapter in the output folder. Raises Stopped and TunesmithError."""
    request, device = attempt.request, attempt.device
    attempt.enter(Phase.PREPARING)
    settings = config.trainer_config(request.spec.training, device, attempt.checkpoints)
    folder = base_model.locate(request.spec.base_model, request.models_folder, attempt.say)
    tokenizer = base_model.load_tokenizer(folder)
    max_length = config.max_seq_length(request.spec.training, base_model.read_context_length(folder))
    rows, held_out = prepare_rows(attempt, tokenizer, max_length)

    attempt.enter(Phase.LOADING)
    model = load(attempt, folder)
    trainer = make_trainer(
        attempt, model, tokenizer, settings, rows=rows, held_out=held_out, max_length=max_length
    )

    attempt.enter(Phase.TRAINING)
    run_trainer(attempt, trainer, evaluates=bool(held_out))

    attempt.enter(Phase.SAVING)
    record = make_record(attempt, tokenizer, trainer)
    size_bytes = output.write(request.output_folder, trainer.model, tokenizer, record)
    attempt.say(f"The adapter is saved: {size_bytes / 1e6:.1f} MB.")

    attempt.enter(Phase.VERIFYING)
    proof.prove(bare_model(attempt, trainer, folder), request.output_folder, rows[0])
    attempt.say("Loaded afresh, the adapter changes what the model says.")


def prepare_rows(
    attempt: Attempt, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[TokenRow], list[TokenRow]]:
    """(rows to train on, rows to evaluate on), with a word on what was cut or dropped."""
    request, training = attempt.request, attempt.request.spec.training
    if ensure_template(tokenizer) and request.dataset_format in _CHAT:
        attempt.warn(
            "no_chat_template", "The base model has no chat template; conversations are rendered plainly."
        )
    if training.max_seq_length and training.max_seq_length > max_length:
        attempt.warn(
            "context_length",
            f"The base model reads {max_length} tokens at most; max_seq_length {training.max_seq_length} is more.",
        )
    with request.dataset.open("rb") as lines:
        formatted = format_rows(
            datasets.read_rows(lines, request.dataset_format),
            tokenizer,
            assistant_only=training.assistant_only_loss,
            max_length=max_length,
        )
    _tell_losses(attempt, formatted, max_length)
    rows, held_out = hold_out(formatted.rows, training.validation_split, training.seed)
    kept = f"{len(rows)} rows to train on" + (f", {len(held_out)} to evaluate on" if held_out else "")
    share = formatted.trained_tokens / formatted.tokens
    attempt.say(f"{kept}: {formatted.tokens:,} tokens, {share:.0%} of them trained.")
    return rows, held_out


def load(attempt: Attempt, folder: Path) -> PeftModel:
    """The base model with a new adapter on it."""
    spec = attempt.request.spec
    model = adapter.attach(base_model.load_model(folder, spec.quantization, attempt.device), spec)
    trained, total = adapter.count_parameters(model)
    bits = (
        f"4-bit {spec.quantization.bnb_4bit_quant_type}" if spec.quantization.load_in_4bit else "unquantized"
    )
    attempt.say(
        f"{spec.base_model} is loaded, {bits}, on {attempt.device.name}: {total / 1e6:,.1f} million weights, "
        f"{trained / 1e6:,.2f} million of them trained."
    )
    if spec.training.packing:
        refuse_leaking(model)
    return model


def make_trainer(
    attempt: Attempt,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: SFTConfig,
    *,
    rows: list[TokenRow],
    held_out: list[TokenRow],
    max_length: int,
) -> AdapterTrainer:
    """The trainer, with the counters of the newest checkpoint where there is one."""
    training = attempt.request.spec.training
    newest = checkpoints.find_newest(attempt.checkpoints)
    counters = checkpoints.read_counters(newest) if newest else Counters()
    packed_length = max_length if training.packing else None
    first_step = checkpoints.step_of(newest) if newest else 0
    tensorboard = SummaryWriter(
        log_dir=str(attempt.request.job_folder / "tensorboard"), purge_step=first_step + 1
    )
    callbacks = [
        RowOrder(),
        Reporter(attempt.send, counters, attempt.device),
        StopWhenAsked(attempt.asked_to_stop),
        TensorBoardCallback(tensorboard),
    ]
    if training.early_stopping_patience:
        callbacks.append(
            StopEarly(attempt.send, counters, training.early_stopping_patience, attempt.best_adapter)
        )
    return AdapterTrainer(
        counters=counters,
        send=attempt.send,
        model=model,
        args=settings,
        train_dataset=make_dataset(rows, packed_length=packed_length),
        eval_dataset=make_dataset(held_out, packed_length=packed_length) if held_out else None,
        data_collator=Collator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def run_trainer(attempt: Attempt, trainer: AdapterTrainer, *, evaluates: bool) -> None:
    """Train from the newest checkpoint or from the start, then evaluate. Raises Stopped."""
    patience = attempt.request.spec.training.early_stopping_patience
    counters = trainer.counters
    newest = checkpoints.find_newest(attempt.checkpoints)
    if newest:
        attempt.say(f"Going on from the checkpoint of step {checkpoints.step_of(newest)}.")
    # Where early stopping ended an interrupted attempt, only the best adapter is wanted.
    if not (newest and patience and counters.evaluations_without_gain >= patience):
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if attempt.asked_to_stop.is_set():
        raise Stopped
    if evaluates and counters.evaluated_step != trainer.state.global_step:
        trainer.evaluate()
    if patience:
        adapter.restore(trainer.model, attempt.best_adapter)
        attempt.say(f"The adapter with the lowest evaluation loss, {counters.best_loss:.4f}, is kept.")


def make_record(
    attempt: Attempt, tokenizer: PreTrainedTokenizerBase, trainer: AdapterTrainer
) -> output.Record:
    """Where the adapter comes from."""
    request, counters = attempt.request, trainer.counters
    return output.Record(
        job=request.job_id,
        spec=request.spec,
        dataset_sha256=request.dataset_sha256,
        chat_template_sha256=output.template_sha256(tokenizer),
        device=attempt.device.name,
        versions=output.versions(),
        metrics=output.FinalMetrics(
            steps=trainer.state.global_step,
            epochs=trainer.state.epoch or 0.0,
            tokens=counters.tokens,
            training_seconds=round(counters.seconds, 3),
            loss=counters.logged_loss,
            eval_loss=counters.best_loss or counters.evaluated_loss,
            peak_memory_bytes=peak_memory_bytes(attempt.device),
        ),
    )


def bare_model(attempt: Attempt, trainer: AdapterTrainer, folder: Path) -> PreTrainedModel:
    """The base model without the trained adapter: the one in memory, or afresh where its biases were trained."""
    if attempt.request.spec.lora.bias == "none":
        return trainer.model.unload()
    trainer.model.cpu()
    return base_model.load_model(folder, attempt.request.spec.quantization, attempt.device)


def _tell_losses(attempt: Attempt, formatted: Formatted, max_length: int) -> None:
    if formatted.cut_lines:
        attempt.warn(
            "rows_cut",
            f"{len(formatted.cut_lines)} rows are longer than {max_length} tokens and were cut: "
            f"{_name_lines(formatted.cut_lines)}.",
        )
    if formatted.dropped_lines:
        attempt.warn(
            "rows_dropped",
            f"{len(formatted.dropped_lines)} rows keep no token to learn from and were left out: "
            f"{_name_lines(formatted.dropped_lines)}.",
        )


def _name_lines(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:_LINES_SHOWN]))
    more = f" and {len(lines) - _LINES_SHOWN} more" if len(lines) > _LINES_SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"


if __name__ == "__main__":
    main()
