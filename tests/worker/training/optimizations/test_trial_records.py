"""A job alike an earlier one uses the optimizations that passed then, and does not try them again."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.training.conftest import MakeRequest, run_here
from tests.worker.training.optimizations.test_apply import SPEC, losses, said, warned, weights
from worker.decoder import reading
from worker.processes.reports import TrainingRequest
from worker.training.optimizations import planned, trial, trial_records
from worker.training.optimizations.trial_records import PassedTrials, TrialRecords

EARLIER = " (an earlier job showed that they compute the same)."


class Trials:
    """Counts the jobs that try their optimizations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        run_reference = trial.Trial.run_reference

        def count(running: trial.Trial) -> None:
            self.count += 1
            run_reference(running)

        monkeypatch.setattr(trial.Trial, "run_reference", count)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    return Trials(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "trials"


def recording(request: TrainingRequest, folder: Path) -> TrainingRequest:
    return request.model_copy(update={"trials_folder": folder})


@pytest.mark.parametrize("is_general", [False, True], ids=["explicit", "general"])
def test_a_job_alike_trains_the_same_without_trials(
    make_request: MakeRequest,
    trials: Trials,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_general: bool,
) -> None:
    if is_general:
        monkeypatch.setattr(reading, "FAMILIES", ())
    requests = [recording(make_request(name, **SPEC), folder) for name in ("one", "two")]

    first, second = (run_here(request) for request in requests)

    assert trials.count == 1
    assert said(second) == said(first).removesuffix(".") + EARLIER
    assert losses(second) == losses(first)
    one, two = (weights(request) for request in requests)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": SPEC["lora"] | {"r": 8}},
        {"lora": SPEC["lora"] | {"dropout": 0.1}},
        {"quantization": {"load_in_4bit": False}},
        {"quantization": {"bnb_4bit_use_double_quant": True}},
        {"training": SPEC["training"] | {"gradient_checkpointing": True}},
    ],
    ids=["rank", "dropout", "dense", "double", "checkpointed"],
)
def test_another_kind_of_job_is_tried(
    make_request: MakeRequest, trials: Trials, folder: Path, changes: dict[str, Any]
) -> None:
    for name, spec in (("one", SPEC), ("two", SPEC | changes)):
        assert losses(run_here(recording(make_request(name, **spec), folder)))

    assert trials.count == 2


def test_other_rows_and_steps_are_the_same_kind_of_job(
    make_request: MakeRequest, trials: Trials, folder: Path
) -> None:
    other = SPEC | {"rows": SPEC["rows"][:8], "training": SPEC["training"] | {"max_steps": 2}}
    for name, spec in (("one", SPEC), ("two", other)):
        assert losses(run_here(recording(make_request(name, **spec), folder)))

    assert trials.count == 1


@pytest.mark.parametrize("changed", ["weights", "code"])
def test_other_weights_and_other_code_are_tried(
    make_request: MakeRequest,
    trials: Trials,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    run_here(recording(make_request("one", **SPEC), folder))
    if changed == "code":
        monkeypatch.setattr(trial_records, "_digest_code", lambda: "another")
    else:
        monkeypatch.setattr("worker.training.run.fingerprint.take_fingerprint", lambda _folder: "another")

    run_here(recording(make_request("two", **SPEC), folder))

    assert trials.count == 2


def test_what_fails_its_trial_is_tried_by_every_job(
    make_request: MakeRequest, trials: Trials, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_given: Any, **_options: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(planned._VARLEN, "row by row", failing)

    for name in ("one", "two"):
        assert warned(run_here(recording(make_request(name, **SPEC), folder)))

    assert trials.count == 2


def test_a_damaged_record_is_replaced(make_request: MakeRequest, trials: Trials, folder: Path) -> None:
    for name in ("one", "two", "three"):
        assert losses(run_here(recording(make_request(name, **SPEC), folder)))
        [record] = folder.iterdir()
        if name == "one":
            record.write_bytes(record.read_bytes()[:10])

    assert trials.count == 2


def test_a_folder_that_cannot_be_written_costs_only_the_record(
    make_request: MakeRequest, trials: Trials, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")

    assert losses(run_here(recording(make_request(**SPEC), not_a_folder)))

    assert "was not recorded" in caplog.text


def test_the_oldest_records_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_records, "_MAX_RECORDS", 2)
    records = TrialRecords(folder, "weights")
    for age, key in enumerate(("old", "older", "oldest")):
        records.keep(key, PassedTrials(names=[key], left_out=[]))
        os.utime(folder / f"{key}.json", (1e9 - age, 1e9 - age))

    records.keep("new", PassedTrials(names=["new"], left_out=[]))

    assert {path.stem for path in folder.iterdir()} == {"new", "old"}
    assert records.find("old") == PassedTrials(names=["old"], left_out=[])
    assert records.find("older") is None
