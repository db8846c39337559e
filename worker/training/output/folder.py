"""Writes the folder of a finished adapter: weights, tokenizer, chat template, model card, and its origin."""

import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from peft import PeftModel
from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase

from app.core.adapters.files import RECORD
from app.core.specs.job import JobSpec
from worker.atomic_folders import appearing
from worker.models import serving_path
from worker.models.device import peak_memory_bytes
from worker.templates.choice import TemplateSource
from worker.templates.renderer import template_sha256
from worker.training import adapter
from worker.training.attempt import TrainingAttempt
from worker.training.output import model_card
from worker.training.rows import PreparedRows
from worker.training.trainer import AdapterTrainer

_PACKAGES = ("tunesmith", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
_TEMPLATE_SOURCES = {
    TemplateSource.JOB: "the job's own",
    TemplateSource.MODEL: "the base model's own",
    TemplateSource.FAMILY: "that of the base model's family",
    TemplateSource.PLAIN: "a plain one, as the base model has none",
}


class FinalMetrics(BaseModel):
    """How training ended. Losses are means per token; the training loss is that of the last metrics event."""

    steps: int
    epochs: float
    tokens: int
    training_seconds: float
    loss: float | None
    eval_loss: float | None
    peak_memory_bytes: int


class DatasetOrigin(BaseModel):
    """The dataset of an adapter. Rows without a token to learn are not counted."""

    id: str
    name: str | None
    sha256: str
    training_rows: int
    evaluation_rows: int


class TemplateOrigin(BaseModel):
    """Origin of the chat template that rows were rendered with; chat_template.jinja has its text."""

    source: TemplateSource
    sha256: str
    rendered_at: datetime = Field(
        description="The date and time that the template could print: when the job was submitted, in UTC."
    )


class Record(BaseModel):
    """The origin of an adapter, written to its folder."""

    job: str
    spec: JobSpec
    base_weights: str = Field(description="Their fingerprint: see worker/models/files/fingerprint.py.")
    dataset: DatasetOrigin
    chat_template: TemplateOrigin
    general_path: list[str] = Field(
        description="Why the engine serves the adapter on its general path; empty: the paged one serves it."
    )
    device: str
    versions: dict[str, str]
    metrics: FinalMetrics


def make_record(
    attempt: TrainingAttempt,
    base_weights: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: PreparedRows,
    trainer: AdapterTrainer,
) -> Record:
    """Collect the origin of a trained adapter."""
    request, counters = attempt.request, trainer.counters
    return Record(
        job=request.job_id,
        spec=request.spec,
        base_weights=base_weights,
        dataset=DatasetOrigin(
            id=request.spec.dataset,
            name=request.dataset_name,
            sha256=request.dataset_sha256,
            training_rows=len(rows.train),
            evaluation_rows=len(rows.held_out),
        ),
        chat_template=TemplateOrigin(
            source=rows.template_source,
            sha256=template_sha256(tokenizer),
            rendered_at=request.submitted_at,
        ),
        general_path=serving_path.find_obstacles(trainer.model),
        device=attempt.device.name,
        versions=versions(),
        metrics=FinalMetrics(
            steps=trainer.state.global_step,
            epochs=trainer.state.epoch or 0.0,
            tokens=counters.tokens,
            training_seconds=round(counters.seconds, 3),
            loss=counters.logged_loss,
            eval_loss=counters.evaluated_loss if counters.best_loss is None else counters.best_loss,
            peak_memory_bytes=peak_memory_bytes(attempt.device),
        ),
    )


def write(folder: Path, model: PeftModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> int:
    """Write the folder, atomically. Returns its size in bytes."""
    with appearing(folder) as staging:
        adapter.save(model, staging)
        tokenizer.save_pretrained(staging)
        (staging / model_card.CARD).write_text(_write_card(record, model))
        (staging / RECORD).write_text(record.model_dump_json(indent=2) + "\n")
        for path in staging.iterdir():
            # safetensors makes its file readable for the owner only.
            path.chmod(0o644)
    return sum(path.stat().st_size for path in folder.iterdir())


def versions() -> dict[str, str]:
    """Versions of Python and the packages that training depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write_card(record: Record, model: PeftModel) -> str:
    dataset, metrics = record.dataset, record.metrics
    return model_card.write_card(
        job=record.job,
        spec=record.spec,
        facts={
            "Dataset": f"{dataset.name or dataset.id} (SHA-256 `{dataset.sha256[:16]}…`)",
            "Rows": f"{dataset.training_rows:,} to train on, {dataset.evaluation_rows:,} to evaluate on",
            "Chat template": f"{_TEMPLATE_SOURCES[record.chat_template.source]} "
            f"(SHA-256 `{record.chat_template.sha256[:16]}…`)",
            "Device": record.device,
        },
        results={
            "Optimizer steps": metrics.steps,
            "Epochs": metrics.epochs,
            "Tokens": metrics.tokens,
            "Training time": f"{metrics.training_seconds:,.0f} s",
            "Training loss, at the end": metrics.loss,
            "Evaluation loss": metrics.eval_loss,
        },
        versions=record.versions,
        targets=model.peft_config["default"].target_modules,
    )
