"""The optimizer steps that a job makes, by its rows, its batches and its devices."""

import pytest

from app.core.specs.job import TrainingSpec
from worker.preflight.schedule import make_schedule


@pytest.mark.parametrize(
    ("gpus", "accumulation", "steps"), [(1, 1, 6), (2, 1, 3), (1, 2, 3), (2, 2, 2), (4, 1, 2)]
)
def test_devices_share_the_batches_of_an_epoch(gpus: int, accumulation: int, steps: int) -> None:
    training = TrainingSpec(per_device_train_batch_size=2, gradient_accumulation_steps=accumulation)

    schedule = make_schedule([5] * 11, training, gpus=gpus)

    assert schedule.optimizer_steps == steps
    assert schedule.epochs == 1
