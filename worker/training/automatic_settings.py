"""Replaces `auto` for a job's batch size and checkpointing, by the memory estimate and the free memory.

The estimate counts on the planned optimizations. Where the trial of one fails, the job may need more memory
than there is: then the trainer halves the rows of a pass (trainer.py).
"""

from collections.abc import Sequence

from app.core.specs.job import TrainingSpec
from worker.models.device import free_memory_bytes
from worker.planning import automatic_settings, batch_size
from worker.templates.token_rows import TokenRow
from worker.training.attempt import TrainingAttempt


def choose_training_settings(
    attempt: TrainingAttempt, job: batch_size.PlannedJob, rows: Sequence[TokenRow], packed_length: int | None
) -> TrainingSpec:
    """The training settings without `auto` for batch size and checkpointing; logs what was chosen and why."""
    spec, device = attempt.request.spec, attempt.device
    if not automatic_settings.has_automatic_batch(spec.training):
        return spec.training
    measured = batch_size.RowLengths.measure(
        [len(row.input_ids) for row in rows],
        [row.trained_tokens for row in rows],
        packed_length=packed_length,
    )
    free_bytes = free_memory_bytes(device)
    chosen = batch_size.choose_batch_size(job, measured, free_bytes=free_bytes)
    training, total = chosen.training, chosen.memory.total
    checkpointing = "with" if training.gradient_checkpointing else "without"
    gigabytes = f"about {total / 1e9:.1f} GB at the peak, of {free_bytes / 1e9:.1f} GB free"
    attempt.say(
        f"Passes of {training.per_device_train_batch_size} rows, {training.gradient_accumulation_steps} a "
        f"step, {checkpointing} gradient checkpointing: {gigabytes}."
    )
    if not chosen.fits:
        attempt.warn(
            "memory_short",
            f"The job needs about {total / 1e9:.1f} GB of memory and {free_bytes / 1e9:.1f} GB are free. "
            "Lower training.max_seq_length or lora.r, or name a smaller base model.",
        )
    return training
