"""Jobs of two processes on the CPU, compared with one process that makes twice as many passes."""

import os
import signal
from typing import Any

import pytest

from app.core.jobs.events import Checkpoint, Evaluation, Metrics, Warn
from tests.worker.training.conftest import MakeRequest, StartRanks, following, make_rows, run_here
from tests.worker.training.ranks.outcomes import (
    assert_equal_weights,
    find_ranks,
    kill_rank,
    losses,
    read_resumed,
    read_the_same,
)
from worker.processes.reports import Happened, Outcome

BASE: dict[str, Any] = {"learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2, "seed": 3}
FAULTY = "tests.worker.training.ranks.faulty_launcher"


@pytest.mark.parametrize(
    ("optimizer", "other"),
    [
        ("sgd", {"group_by_length": False}),
        pytest.param("adamw_torch", {"validation_split": 0.3, "eval_steps": 2}, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_learn_as_one_process_with_twice_the_accumulation(
    make_request: MakeRequest, start_ranks: StartRanks, optimizer: str, other: dict[str, Any]
) -> None:
    # 11 rows are six batches of 2, the last one half full: the last step has one batch for both ranks.
    training = {**BASE, **other, "optim": optimizer, "per_device_train_batch_size": 2, "num_train_epochs": 2}
    common: dict[str, Any] = {"rows": make_rows(11), "lora": {"r": 4, "dropout": 0.0}}
    one = make_request("one", **common, training={**training, "gradient_accumulation_steps": 4})
    two = make_request(
        "two", **common, training={**training, "gradient_accumulation_steps": 2}, resources={"gpus": 2}
    )

    alone = run_here(one)
    together = read_the_same(start_ranks(two), two, alone, one)
    evaluated = [[point.loss for point in reports.events(Evaluation)] for reports in (together, alone)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_job_of_which_a_rank_is_killed_resumes_exactly(
    make_request: MakeRequest, start_ranks: StartRanks, killed: int
) -> None:
    spec: dict[str, Any] = {
        "rows": make_rows(10),
        "lora": {"r": 4, "dropout": 0.1},
        "training": {**BASE, "max_steps": 8, "per_device_train_batch_size": 2},
        "resources": {"gpus": 2},
    }
    undisturbed, disturbed = make_request("undisturbed", **spec), make_request("disturbed", **spec)
    assert start_ranks(undisturbed).read_to_end().ended.outcome is Outcome.FINISHED

    child = start_ranks(disturbed)
    kill_rank(child, killed)
    read_resumed(start_ranks(following(disturbed, child.reports)))

    assert_equal_weights(disturbed, undisturbed)


@pytest.mark.slow
def test_ranks_stop_together_and_resume_exactly(make_request: MakeRequest, start_ranks: StartRanks) -> None:
    spec: dict[str, Any] = {
        "lora": {"r": 4, "dropout": 0.1},
        "training": {**BASE, "max_steps": 12, "save_steps": 100},
        "resources": {"gpus": 2},
    }
    undisturbed, disturbed = make_request("undisturbed", **spec), make_request("disturbed", **spec)
    start_ranks(undisturbed).read_to_end()

    child = start_ranks(disturbed)
    for report in child.read():
        if isinstance(report, Happened) and isinstance(report.event, Metrics):
            child.process.ask_to_stop()
            break
    reports = child.read_to_end()

    assert reports.ended.outcome is Outcome.STOPPED
    assert child.process.wait(60) == 0
    assert reports.events(Checkpoint)[-1].step < 12
    assert start_ranks(disturbed).read_to_end().ended.outcome is Outcome.FINISHED
    assert_equal_weights(disturbed, undisturbed)


@pytest.mark.slow
def test_all_ranks_make_smaller_passes_once_one_has_run_out_of_memory(
    make_request: MakeRequest, start_ranks: StartRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec: dict[str, Any] = {
        "rows": make_rows(16),
        "lora": {"r": 4, "dropout": 0.0},
        "training": {**BASE, "max_steps": 5, "per_device_train_batch_size": 2},
        "resources": {"gpus": 2},
    }
    whole, halved = make_request("whole", **spec), make_request("halved", **spec)
    expected = start_ranks(whole).read_to_end()
    monkeypatch.setenv("RANK_FAULT", "fits one row")

    reports = start_ranks(halved, FAULTY).read_to_end()

    assert reports.ended.outcome is Outcome.FINISHED
    assert losses(reports) == pytest.approx(losses(expected), rel=1e-5)
    [warning] = [event for event in reports.events(Warn) if event.code == "out_of_memory"]
    assert "1 sequence" in warning.message


@pytest.mark.slow
def test_a_failure_of_another_rank_fails_the_job_by_its_name(
    make_request: MakeRequest, start_ranks: StartRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK_FAULT", "never fits")
    request = make_request(training={**BASE, "max_steps": 5}, resources={"gpus": 2})

    child = start_ranks(request, FAULTY)
    ended = child.read_to_end().ended

    assert (ended.outcome, ended.code) == (Outcome.FAILED, "out_of_memory")
    assert (ended.message or "").startswith("Rank 1 of 2: Step 3 of 5 ran out of memory")
    assert child.process.wait(60) == 0


def test_a_job_that_asks_for_more_devices_than_there_are_fails(
    make_request: MakeRequest, start_ranks: StartRanks
) -> None:
    ended = start_ranks(make_request(resources={"gpus": 3})).read_to_end().ended

    assert (ended.outcome, ended.code) == (Outcome.FAILED, "too_few_devices")


@pytest.mark.slow
def test_ranks_die_with_their_launcher(make_request: MakeRequest, start_ranks: StartRanks) -> None:
    child = start_ranks(make_request(training={**BASE, "max_steps": 500}, resources={"gpus": 2}))
    next(
        report
        for report in child.read()
        if isinstance(report, Happened) and isinstance(report.event, Metrics)
    )
    ranks = find_ranks(child)

    os.kill(child.process.pid, signal.SIGKILL)

    assert len(ranks) == 2
    for one in ranks:
        one.wait(60)


@pytest.mark.slow
def test_early_stopping_is_decided_together(make_request: MakeRequest, start_ranks: StartRanks) -> None:
    request = make_request(
        rows=make_rows(12),
        training={
            **BASE,
            "learning_rate": 1.0,
            "max_steps": 40,
            "validation_split": 0.3,
            "eval_steps": 1,
            "early_stopping_patience": 2,
        },
        resources={"gpus": 2},
    )

    reports = start_ranks(request).read_to_end()

    assert reports.ended.outcome is Outcome.FINISHED
    assert reports.events(Evaluation)[-1].step < 40
