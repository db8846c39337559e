"""Replaces `auto` for a job's batch size, checkpointing and strategy, by memory estimate and free memory.

The estimate counts on the planned optimizations. Where the trial of one fails, the job may need more memory
than there is: then the trainer halves the rows of a pass (trainer.py).
"""

from collections.abc import Sequence

from app.core.specs.job import TrainingSpec
from worker.models.device import free_memory_bytes
from worker.planning import automatic_settings, batch_size
from worker.planning.preference_examples import Lengths
from worker.planning.strategy import SharedJob, advise_on_memory, choose_strategy
from worker.training.attempt import TrainingAttempt


def choose_training_settings(
    attempt: TrainingAttempt, job: batch_size.PlannedJob, rows: Sequence[Lengths], packed_length: int | None
) -> tuple[TrainingSpec, bool]:
    """The training settings without `auto` for batch size and checkpointing, and whether the ranks divide the
    base model; logs what was chosen and why."""
    spec, device = attempt.request.spec, attempt.device
    if not automatic_settings.has_automatic_batch(spec.training) and spec.resources.ranks == 1:
        return spec.training, False
    measured = batch_size.RowLengths.measure_sequences(rows)
    if packed_length:
        lengths, scored = zip(*(sequence for row in rows for sequence in row), strict=True)
        measured = batch_size.RowLengths.measure(lengths, scored, packed_length=packed_length)
    free_bytes = min(attempt.world.gather(free_memory_bytes(device)))
    shared = choose_strategy(job, measured, free_bytes=free_bytes)
    divides_base = shared.strategy == "fsdp"
    if shared.strategy:
        does = "divide the base model among them" if divides_base else "hold the whole base model each"
        attempt.say(f"{spec.resources.ranks} devices {does} ({shared.strategy}): {shared.reason}")
    _report(attempt, shared, free_bytes)
    return shared.batch.training, divides_base


def _report(attempt: TrainingAttempt, shared: SharedJob, free_bytes: int) -> None:
    spec, chosen = attempt.request.spec, shared.batch
    training, total = chosen.training, chosen.memory.total
    checkpointing = "with" if training.gradient_checkpointing else "without"
    gigabytes = f"about {total / 1e9:.1f} GB at the peak, of {free_bytes / 1e9:.1f} GB free"
    if automatic_settings.has_automatic_batch(spec.training):
        attempt.say(
            f"Passes of {training.per_device_train_batch_size} rows, "
            f"{training.gradient_accumulation_steps} a step, {checkpointing} gradient checkpointing: "
            f"{gigabytes}."
        )
    if not chosen.fits:
        attempt.warn(
            "memory_short",
            f"The job needs about {total / 1e9:.1f} GB of memory and {free_bytes / 1e9:.1f} GB are free. "
            + advise_on_memory(spec, shared.strategy),
        )
