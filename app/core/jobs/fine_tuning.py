"""OpenAI's hyperparameters as training settings, and what its fine-tuning requires of a file. No I/O.

docs/openai.md shows the rules as a table. The number of epochs for `auto` is the rule that OpenAI published
(its cookbook on preparing data for fine-tuning): more epochs for a small file, one for a large one.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from app.core.datasets.openai_files import INVALID_FORMAT
from app.core.errors.datasets import DatasetUnfit
from app.core.jobs import inputs
from app.core.specs.job import JobSpec, TrainingSpec
from app.core.specs.methods import LEARNING_RATES, Method
from app.core.specs.states import DatasetState
from app.core.storage import tables
from app.core.work.failures import WorkFailure

MIN_ROWS = 10
CHECKPOINT_ADAPTERS = 3
AUTO_BATCH_SIZE = 4
_TARGET_EPOCHS, _MAX_EPOCHS = 3, 25
_MIN_ROWS_READ, _MAX_ROWS_READ = 100, 25_000
_MAX_POINTS = 500
_ROWS_IN_A_PASS = 4
_LINES_SHOWN = 5

INVALID_COUNT = "invalid_n_examples"
_METHOD_HINT = (
    "With method.type `dpo` a row has `input`, `preferred_output` and `non_preferred_output`; with "
    "`supervised` it has `messages`."
)
_CODES = (INVALID_FORMAT, INVALID_COUNT)
_INVALID = "The job failed due to an invalid {kind} file."

Auto = Literal["auto"]
FileKind = Literal["training", "validation"]


@dataclass(frozen=True)
class Hyperparameters:
    """OpenAI's hyperparameters; each is a number or `auto`."""

    n_epochs: float | Auto = "auto"
    batch_size: int | Auto = "auto"
    learning_rate_multiplier: float | Auto = "auto"


def training_settings(
    requested: Hyperparameters,
    given: dict[str, Any],
    *,
    base_learning_rate: float,
    rows: int,
    is_validated: bool,
) -> dict[str, Any]:
    """Returns settings of TrainingSpec for a file of `rows` rows; those in `given` have precedence."""
    batch = AUTO_BATCH_SIZE if requested.batch_size == "auto" else requested.batch_size
    multiplier = 1.0 if requested.learning_rate_multiplier == "auto" else requested.learning_rate_multiplier
    epochs = auto_epochs(rows) if requested.n_epochs == "auto" else requested.n_epochs
    settings = {
        "num_train_epochs": epochs,
        **_passes(batch),
        "learning_rate": base_learning_rate * multiplier,
        "keep_checkpoints": CHECKPOINT_ADAPTERS,
        **given,
    }
    epoch_steps = max(1, math.ceil(rows / effective_batch(TrainingSpec.model_construct(**settings))))
    total_steps = max(1, math.ceil(epoch_steps * settings["num_train_epochs"]))
    follows: dict[str, Any] = {"logging_steps": math.ceil(total_steps / _MAX_POINTS)}
    if is_validated:
        follows["eval_steps"] = epoch_steps
    return follows | settings


def hyperparameters(spec: JobSpec) -> Hyperparameters:
    """Returns a job's settings as OpenAI's hyperparameters."""
    training = spec.training
    return Hyperparameters(
        n_epochs=_whole(training.num_train_epochs),
        batch_size=effective_batch(training) * spec.resources.ranks,
        learning_rate_multiplier=float(f"{training.learning_rate / LEARNING_RATES[spec.method]:.6g}"),
    )


def auto_epochs(rows: int) -> int:
    """Returns 3, but more where that would read fewer than 100 rows in all, and fewer past 25,000."""
    if rows * _TARGET_EPOCHS < _MIN_ROWS_READ:
        return min(_MAX_EPOCHS, _MIN_ROWS_READ // max(1, rows))
    if rows * _TARGET_EPOCHS > _MAX_ROWS_READ:
        return max(1, _MAX_ROWS_READ // rows)
    return _TARGET_EPOCHS


def effective_batch(training: TrainingSpec) -> int:
    """Returns the rows of one optimizer step on one device."""
    rows = training.per_device_train_batch_size
    return (_ROWS_IN_A_PASS if rows == "auto" else rows) * training.gradient_accumulation_steps


def find_failure(dataset: tables.DatasetRow, kind: FileKind, method: Method = "sft") -> WorkFailure | None:
    """Returns why a job can't be trained with this file, with OpenAI's words and codes; None where it can."""
    start = _INVALID.format(kind=kind)
    if dataset.state == DatasetState.FAILED:
        error = dataset.error or {}
        lines = [
            f"Line {problem['line']}: {problem['message']}" for problem in dataset.problems[:_LINES_SHOWN]
        ]
        reasons = " ".join(lines) or error.get("message", "")
        rest = dataset.problem_count - len(lines)
        more = f" … and {rest} more." if lines and rest > 0 else ""
        return WorkFailure(INVALID_FORMAT, f"{start} Invalid file format. {reasons}{more}", error.get("hint"))
    try:
        inputs.check_method(dataset, method)
    except DatasetUnfit as error:
        message = f"{start} Invalid file format. {error.message}"
        return WorkFailure(INVALID_FORMAT, message, _METHOD_HINT)
    if kind == "training" and dataset.rows < MIN_ROWS:
        examples = "1 example" if dataset.rows == 1 else f"{dataset.rows} examples"
        return WorkFailure(
            INVALID_COUNT,
            f"{start} Training file has {examples}, but must have at least {MIN_ROWS} examples.",
            "Add rows and upload the file again; POST /jobs, the native API, takes any number.",
        )
    return None


def param_of(code: str, message: str) -> str | None:
    """Returns the parameter (`training_file`, `validation_file`) that a job's failure is about, or None."""
    kinds: tuple[FileKind, ...] = ("training", "validation")
    named = (kind for kind in kinds if message.startswith(_INVALID.format(kind=kind)))
    return next((f"{kind}_file" for kind in named), None) if code in _CODES else None


def _passes(batch: int) -> dict[str, Any]:
    """Returns the settings for a batch: `auto` rows a pass (4 or more) where 4 divides it, else fewer."""
    if batch % _ROWS_IN_A_PASS == 0:
        return {
            "per_device_train_batch_size": "auto",
            "gradient_accumulation_steps": batch // _ROWS_IN_A_PASS,
        }
    rows = next(size for size in (3, 2, 1) if batch % size == 0)
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": batch // rows}


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
