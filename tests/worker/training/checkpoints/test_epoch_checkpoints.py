"""The adapters at the ends of epochs, as folders of their own."""

import shutil
from typing import Any

from tests.worker.training.checkpoints.test_resume import at_step
from tests.worker.training.conftest import MakeRequest, run_here
from worker.processes.reports import CheckpointAdapterSaved, Outcome

# Ten rows in passes of four: three steps an epoch.
TRAINING: dict[str, Any] = {"num_train_epochs": 3, "keep_checkpoints": 3, "learning_rate": 1e-2}


def test_every_epoch_but_the_last_leaves_an_adapter_that_can_be_served(make_request: MakeRequest) -> None:
    request = make_request(training=TRAINING)

    reports = run_here(request)

    saved = [report for report in reports if isinstance(report, CheckpointAdapterSaved)]
    assert [report.step for report in saved] == [3, 6]
    finished = {path.name for path in request.output_folder.iterdir()}
    weights = [(report.folder / "adapter_model.safetensors").read_bytes() for report in saved]
    assert all({path.name for path in report.folder.iterdir()} == finished for report in saved)
    assert len({*weights, (request.output_folder / "adapter_model.safetensors").read_bytes()}) == 3


def test_keeping_changes_neither_losses_nor_weights(make_request: MakeRequest) -> None:
    plain, keeping = (
        make_request("plain", training={**TRAINING, "keep_checkpoints": 0}),
        make_request("keeping", training=TRAINING),
    )
    assert not any(isinstance(report, CheckpointAdapterSaved) for report in run_here(plain))
    run_here(keeping)
    one, other = ((request.output_folder / "adapter_model.safetensors") for request in (plain, keeping))
    assert one.read_bytes() == other.read_bytes()


def test_a_job_that_is_stopped_in_mid_epoch_saves_no_adapter_of_that_epoch(make_request: MakeRequest) -> None:
    request = make_request(training=TRAINING)

    first = run_here(request, stop_when=at_step(4))
    second = run_here(request)

    assert first.ended.outcome is Outcome.STOPPED
    saved_steps = [
        [report.step for report in reports if isinstance(report, CheckpointAdapterSaved)]
        for reports in (first, second)
    ]
    # An adapter that the worker has not moved is reported again.
    assert saved_steps == [[3], [3, 6]]


def test_an_adapter_that_went_with_its_host_is_saved_again_from_the_checkpoint(
    make_request: MakeRequest,
) -> None:
    training = {**TRAINING, "save_steps": 3}
    request = make_request(training=training)

    first = run_here(request, stop_when=at_step(4))
    [saved] = [report for report in first if isinstance(report, CheckpointAdapterSaved)]
    before = (saved.folder / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(saved.folder)
    shutil.rmtree(request.job_folder / "checkpoints" / "checkpoint-4")
    second = run_here(request)

    again = [report for report in second if isinstance(report, CheckpointAdapterSaved)]
    assert [report.step for report in again] == [3, 6]
    assert (again[0].folder / "adapter_model.safetensors").read_bytes() == before
