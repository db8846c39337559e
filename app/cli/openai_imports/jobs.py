"""OpenAI's fine-tuning jobs as job specs with the nearest settings. Pure.

The rules are those of `POST /v1/fine_tuning/jobs` (docs/openai.md shows them as a table); a test holds both
equal.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from app.cli.openai_imports.files import RowFile, RowKind, plain_name
from app.cli.openai_imports.objects import OpenAIHyperparameters, OpenAIJob

METHODS = {"supervised": "sft", "dpo": "dpo"}
_FORMS = {
    "sft": (RowKind.CHAT, RowKind.COMPLETIONS),
    "dpo": (RowKind.PREFERENCES,),
}
_LEARNING_RATES = {"sft": 2e-4, "dpo": 2e-5}
_ROWS_IN_A_PASS = 4
_CHECKPOINTS = 3
_TARGET_EPOCHS, _MAX_EPOCHS = 3, 25
_MIN_ROWS_READ, _MAX_ROWS_READ = 100, 25_000
_MAX_SEED = 2**32 - 1
_MAX_METADATA = 16


@dataclass(frozen=True)
class JobDraft:
    """A job that can be submitted: its spec without datasets, its files, and what to know of it.

    `continues`: OpenAI's name of the fine-tuned model that it starts from, whose job must end first.
    """

    name: str
    source: str
    spec: dict[str, Any]
    training: RowFile
    validation: RowFile | None
    notes: list[str] = field(default_factory=list)
    continues: str | None = None


def plan_job(job: OpenAIJob, base_model: str, training: RowFile, validation: RowFile | None) -> JobDraft:
    """The job with the nearest settings."""
    method = METHODS[job.method.type if job.method else "supervised"]
    spec: dict[str, Any] = {"base_model": base_model, "suffix": plain_name(job.own_suffix)}
    if method != "sft":
        spec["method"] = method
        beta = job.chosen_hyperparameters.beta
        if isinstance(beta, float | int):
            spec[method] = {"beta": beta}
    spec["metadata"] = _metadata(job)
    spec["training"] = training_settings(
        job.chosen_hyperparameters, method, rows=training.rows, is_validated=validation is not None
    )
    notes = []
    if job.seed is not None:
        spec["training"]["seed"] = job.seed % (_MAX_SEED + 1)
    continues = job.model if job.model.startswith("ft:") else None
    if continues:
        notes.append(
            f"It continued from {continues}. Submit it once that model's job has ended here, with the name "
            "of its adapter as continue_from."
        )
    notes += [
        f"The integration {integration.get('type', '?')} is left out. A job's report_to names trackers, of "
        "which the worker has the packages and keys."
        for integration in job.integrations or []
    ]
    return JobDraft(_file_name(job), job.name, spec, training, validation, notes, continues)


def find_problem(job: OpenAIJob, training: RowFile) -> str | None:
    """Why the rows of a file can't be learned from by the job's method, or None."""
    method = METHODS[job.method.type if job.method else "supervised"]
    if training.kind not in _FORMS[method]:
        return f"its method learns from rows of another form than those of {training.path} ({training.kind})"
    if training.images:
        return f"{training.images} rows of {training.path} have pictures or sound; jobs here learn from text"
    return None


def training_settings(
    chosen: OpenAIHyperparameters, method: str, *, rows: int, is_validated: bool
) -> dict[str, Any]:
    """Settings of a job for a file of `rows` rows; what is `auto` follows from it."""
    batch = chosen.batch_size if isinstance(chosen.batch_size, int) else _ROWS_IN_A_PASS
    epochs = chosen.n_epochs if isinstance(chosen.n_epochs, float | int) else _auto_epochs(rows)
    multiplier = chosen.learning_rate_multiplier
    rate = _LEARNING_RATES[method] * (multiplier if isinstance(multiplier, float | int) else 1.0)
    settings: dict[str, Any] = {
        "num_train_epochs": int(epochs) if epochs == int(epochs) else epochs,
        **_passes(max(1, batch)),
        "learning_rate": float(f"{rate:.6g}"),
        "keep_checkpoints": _CHECKPOINTS,
    }
    if is_validated:
        settings["eval_steps"] = max(1, math.ceil(rows / max(1, batch)))
    return settings


def _auto_epochs(rows: int) -> int:
    if rows * _TARGET_EPOCHS < _MIN_ROWS_READ:
        return min(_MAX_EPOCHS, _MIN_ROWS_READ // max(1, rows))
    if rows * _TARGET_EPOCHS > _MAX_ROWS_READ:
        return max(1, _MAX_ROWS_READ // rows)
    return _TARGET_EPOCHS


def _passes(batch: int) -> dict[str, Any]:
    if batch % _ROWS_IN_A_PASS == 0:
        passes = batch // _ROWS_IN_A_PASS
        return {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": passes}
    rows = next(size for size in (3, 2, 1) if batch % size == 0)
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": batch // rows}


def _metadata(job: OpenAIJob) -> dict[str, str]:
    """The job's own words, and where it is from, as far as there may be more."""
    own = dict(job.metadata or {})
    for key, value in (("openai_job", job.id), ("openai_model", job.fine_tuned_model or job.model)):
        if value and len(own) < _MAX_METADATA:
            own.setdefault(key, value)
    return own


def _suffix(text: str) -> str:
    """A suffix of the characters that one may have here."""
    return "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in text)[
        :64
    ]


def _file_name(job: OpenAIJob) -> str:
    return "-".join(part for part in (plain_name(job.own_suffix), _suffix(job.id)) if part) or "job"
