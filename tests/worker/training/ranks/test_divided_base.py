"""Jobs of two processes on the CPU that divide the base model, compared with one process."""

import re
from typing import Any

import pytest
import torch

from app.core.jobs.events import Evaluation, Log, Metrics, Warn
from app.core.settings import TrainingPath
from tests.worker.training.conftest import MakeRequest, StartRanks, following, make_rows, run_here
from tests.worker.training.ranks.outcomes import (
    kill_rank,
    losses,
    read_resumed,
    read_to_checkpoint,
    tokens,
    weights,
)
from worker.processes.reports import Happened, Outcome, TrainingRequest

BASE: dict[str, Any] = {"learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2, "seed": 3}
DIVIDED: dict[str, Any] = {
    "quantization": {"load_in_4bit": False},
    "lora": {"r": 4, "dropout": 0.0},
    "resources": {"gpus": 2, "strategy": "fsdp"},
}
FAULTY = "tests.worker.training.ranks.faulty_launcher"


def on_one(request: TrainingRequest, **resources: Any) -> TrainingRequest:
    """The job on one device, or as `resources` say, with a step of the same rows."""
    spec = request.spec.model_dump()
    gpus = resources.get("gpus", 1)
    accumulation = spec["training"]["gradient_accumulation_steps"] * request.spec.resources.gpus // gpus
    changed = type(request.spec).model_validate(
        {
            **spec,
            "resources": {"gpus": 1, "strategy": "auto", **resources},
            "training": {**spec["training"], "gradient_accumulation_steps": accumulation},
        }
    )
    return request.model_copy(update={"spec": changed, "path": TrainingPath.PLAIN})


def assert_same_weights(request: TrainingRequest, expected: TrainingRequest) -> None:
    wanted = weights(expected)
    for name, weight in weights(request).items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "other"),
    [
        ("sgd", {"group_by_length": False}),
        pytest.param(
            "adamw_torch",
            {"validation_split": 0.3, "eval_steps": 2, "gradient_checkpointing": True, "packing": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_ranks_that_divide_the_base_model_learn_as_one_process(
    make_request: MakeRequest, start_ranks: StartRanks, optimizer: str, other: dict[str, Any]
) -> None:
    # 7 rows are four batches of 2, the last one half full: the last step has one batch for both ranks.
    training = {**BASE, **other, "optim": optimizer, "per_device_train_batch_size": 2}
    two = make_request("two", **DIVIDED, rows=make_rows(7), training=training)
    one = on_one(make_request("one", **DIVIDED, rows=make_rows(7), training=training))

    alone = run_here(one)
    child = start_ranks(two)
    together = child.read_to_end()

    assert together, child.process.log_tail()
    assert together.ended.outcome is Outcome.FINISHED, child.process.log_tail()
    said = "\n".join(line.message for line in together.events(Log))
    assert "2 devices divide the base model among them (fsdp): resources.strategy asks for it." in said
    held, total = re.findall(r"A device holds ([0-9.]+) of ([0-9.]+) million weights", said)[0]
    assert float(held) < 0.75 * float(total)
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    assert tokens(together) == tokens(alone)
    evaluated = [[point.loss for point in reports.events(Evaluation)] for reports in (together, alone)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)
    assert_same_weights(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_divided_job_of_which_a_rank_is_killed_resumes_to_the_same_weights(
    make_request: MakeRequest, start_ranks: StartRanks, killed: int
) -> None:
    spec = {**DIVIDED, "training": {**BASE, "max_steps": 8}}
    undisturbed = on_one(make_request("undisturbed", **spec))
    disturbed = make_request("disturbed", **spec)
    run_here(undisturbed)

    child = start_ranks(disturbed)
    kill_rank(child, killed)
    read_resumed(start_ranks(following(disturbed, child.reports)))

    assert_same_weights(disturbed, undisturbed)


@pytest.mark.slow
def test_a_checkpoint_is_resumed_by_another_strategy_and_by_other_counts_of_ranks(
    make_request: MakeRequest, start_ranks: StartRanks
) -> None:
    training = {**BASE, "max_steps": 6, "per_device_train_batch_size": 1}
    request = make_request("job", **DIVIDED, training=training)
    undisturbed = on_one(make_request("undisturbed", **DIVIDED, training=training))
    run_here(undisturbed)

    child = start_ranks(request)
    read_to_checkpoint(child, 2)
    child.process.ask_to_stop()
    assert child.read_to_end().ended.outcome is Outcome.STOPPED
    child = start_ranks(on_one(request, gpus=2, strategy="ddp"))
    for report in child.read():
        if isinstance(report, Happened) and isinstance(report.event, Metrics):
            child.process.ask_to_stop()
            break
    assert child.read_to_end().ended.outcome is Outcome.STOPPED
    assert run_here(on_one(request)).ended.outcome is Outcome.FINISHED

    assert_same_weights(request, undisturbed)


@pytest.mark.slow
def test_ranks_that_divide_the_base_model_begin_again_with_smaller_passes(
    make_request: MakeRequest, start_ranks: StartRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {**BASE, "max_steps": 5, "per_device_train_batch_size": 2}
    whole = on_one(make_request("whole", **DIVIDED, rows=make_rows(7), training=training))
    halved = make_request("halved", **DIVIDED, rows=make_rows(7), training=training)
    expected = run_here(whole)
    monkeypatch.setenv("RANK_FAULT", "fits one row")

    reports = start_ranks(halved, FAULTY).read_to_end()

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    [warning] = [event for event in reports.events(Warn) if event.code == "out_of_memory"]
    assert warning.message.startswith("Step 3 of 5 ran out of memory with 2 sequences in a pass")
    assert losses(reports) == pytest.approx(losses(expected), rel=1e-5)
    assert_same_weights(halved, whole)
