"""How many sample answers a job generates, and about how long they take. Knows no model's weights.

Those of the final evaluation, of base model and adapter to rows that were held out, are among them.
"""

from app.core.specs.job import TrainingSpec
from worker.planning.memory_estimate import ModelShape
from worker.planning.time_estimate import TimeSettings, estimate_token_seconds

# Of the rows to evaluate on, so many are prompts where a job names none.
SAMPLED_ROWS = 3
# Their answers take at most this share of the time of the optimizer steps, those before training and those of
# the finished adapter left out.
SHARE = 0.05
# Answers that have not ended by then are cut.
MAX_SECONDS = 60.0

# The final evaluation has at most so many rows, and takes at most about so long.
FINAL_ROWS = 20
FINAL_SECONDS = 120.0

# Each token would collect all weights from all devices.
NO_ANSWERS = (
    "The GPUs divide the base model, so the job makes no sample answers and no final evaluation. Evaluate "
    "the finished adapter instead."
)


def estimate_final_seconds(
    training: TrainingSpec, shape: ModelShape, settings: TimeSettings, *, evaluation_rows: int
) -> float:
    """About how long the final evaluation takes: its answers, next to which its losses take no time."""
    if not evaluation_rows:
        return 0.0
    rows = min(FINAL_ROWS, evaluation_rows)
    once = training.sample_max_new_tokens * estimate_token_seconds(shape, settings, rows=rows)
    return min(2 * once, FINAL_SECONDS)


def estimate_sample_seconds(
    training: TrainingSpec,
    shape: ModelShape,
    settings: TimeSettings,
    *,
    evaluation_rows: int,
    steps: int,
    step_seconds: float,
) -> float:
    """About how long all sample answers of a job take whose `steps` optimizer steps take `step_seconds`."""
    named = training.sample_prompts
    prompts = min(SAMPLED_ROWS, evaluation_rows) if named == "auto" else 0 if named == "none" else len(named)
    if not prompts:
        return 0.0
    seconds = training.sample_max_new_tokens * estimate_token_seconds(shape, settings, rows=prompts)
    once = min(seconds, MAX_SECONDS)
    evaluations = (steps - 1) // training.eval_steps if training.eval_steps else 0
    between = evaluations * once
    return 2 * once + (min(between, SHARE * step_seconds) if named == "auto" else between)
