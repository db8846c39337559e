"""A step that runs out of memory is repeated in smaller passes, and ends as if nothing had happened.

The shortage is injected after a pass has added its gradients.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTTrainer

from app.core.jobs.events import Evaluation, Log, Metrics, Warn
from tests.worker.training.conftest import MakeRequest, Reports, following, make_rows, run_here
from worker.processes.reports import Advanced, Outcome, TrainingRequest
from worker.training import memory
from worker.training.progress.counters import Counters
from worker.training.trainer import AdapterTrainer

TRAINING: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "save_steps": 2,
    "learning_rate": 1e-2,
}
SPEC: dict[str, Any] = {"training": TRAINING, "lora": {"r": 4, "dropout": 0.0}, "rows": make_rows(18)}
Scarce = Callable[[int, int], None]


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Scarce:
    """From some step on, no more than so many rows fit."""

    def limit(max_rows: int, from_step: int = 0) -> None:
        train, predict = SFTTrainer.training_step, SFTTrainer.prediction_step

        def training_step(self: SFTTrainer, model: Any, inputs: memory.Batch, *rest: Any) -> torch.Tensor:
            loss: torch.Tensor = train(self, model, inputs, *rest)
            if self.state.global_step >= from_step and memory.count_rows(inputs) > max_rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return loss

        def prediction_step(self: SFTTrainer, model: Any, inputs: memory.Batch, *rest: Any, **kw: Any) -> Any:
            if memory.count_rows(inputs) > max_rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return predict(self, model, inputs, *rest, **kw)

        monkeypatch.setattr(SFTTrainer, "training_step", training_step)
        monkeypatch.setattr(SFTTrainer, "prediction_step", prediction_step)

    return limit


def weights(request: TrainingRequest) -> dict[str, torch.Tensor]:
    return load_file(request.output_folder / "adapter_model.safetensors")


def losses(reports: Reports) -> list[float]:
    return [event.loss for event in reports.events(Metrics)]


def shortages(reports: Reports) -> list[str]:
    return [event.message for event in reports.events(Warn) if event.code == "out_of_memory"]


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"group_by_length": False, "gradient_accumulation_steps": 1},
        {"packing": True, "max_seq_length": 64},
    ],
    ids=["accumulated", "random", "packed"],
)
def test_smaller_passes_give_the_weights_of_the_whole_batch(
    make_request: MakeRequest, scarce: Scarce, training: dict[str, Any]
) -> None:
    spec = SPEC | {"training": TRAINING | training}
    undisturbed, short = make_request("undisturbed", **spec), make_request("short", **spec)
    whole = run_here(undisturbed)
    scarce(1, 1)

    reports = run_here(short)

    assert [message.partition(" and")[0] for message in shortages(reports)] == [
        "Step 2 of 6 ran out of memory with 4 sequences in a pass",
        "Step 2 of 6 ran out of memory with 2 sequences in a pass",
    ]
    assert losses(reports) == pytest.approx(losses(whole), rel=1e-4)
    assert reports.events(Metrics)[-1].tokens == whole.events(Metrics)[-1].tokens
    torch.testing.assert_close(weights(short), weights(undisturbed), rtol=1e-3, atol=1e-5)


def test_a_shortage_leaves_no_trace_in_random_numbers_and_gradients(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, scarce: Scarce
) -> None:
    spec: dict[str, Any] = SPEC | {"lora": {"r": 4, "dropout": 0.5}}
    small, short = make_request("small", **spec), make_request("short", **spec)
    with monkeypatch.context() as from_the_start:
        from_the_start.setattr(
            "worker.training.construction.Counters", lambda: Counters(train_rows_at_once=2)
        )
        run_here(small)
    scarce(2, 0)

    run_here(short)

    left, right = weights(small), weights(short)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_resumed_job_keeps_to_smaller_passes(make_request: MakeRequest, scarce: Scarce) -> None:
    undisturbed, request = make_request("undisturbed", **SPEC), make_request(**SPEC)
    scarce(2, 1)
    run_here(undisturbed)

    first = run_here(request, stop_when=lambda report: isinstance(report, Advanced) and report.step == 3)
    second = run_here(following(request, first))

    assert (len(shortages(first)), len(shortages(second))) == (1, 0)
    left, right = weights(undisturbed), weights(request)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_row_that_does_not_fit_alone_fails_the_job(make_request: MakeRequest, scarce: Scarce) -> None:
    request = make_request(**SPEC)
    scarce(0, 3)

    ended = run_here(request).ended

    assert (ended.outcome, ended.code) == (Outcome.FAILED, "out_of_memory")
    assert ended.message == "Step 4 of 6 ran out of memory with a single sequence in a pass."
    assert "gradient_checkpointing" in (ended.hint or "")
    assert (request.job_folder / "checkpoints" / "checkpoint-2").is_dir()


def test_an_evaluation_that_runs_out_of_memory_gives_the_same_loss(
    make_request: MakeRequest, scarce: Scarce
) -> None:
    spec = SPEC | {"training": TRAINING | {"validation_split": 0.4, "per_device_eval_batch_size": 3}}
    whole = run_here(make_request("undisturbed", **spec))
    scarce(2, 99)

    reports = run_here(make_request("short", **spec))

    assert [message.partition(" and")[0] for message in shortages(reports)] == [
        "An evaluation ran out of memory with 3 sequences in a pass"
    ]
    [expected], [found] = whole.events(Evaluation), reports.events(Evaluation)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_a_batch_is_split_in_order() -> None:
    batch = {"input_ids": torch.arange(10).reshape(5, 2), "labels": torch.zeros(5, 2)}

    parts = memory.split(batch, 2)

    assert [part["input_ids"].tolist() for part in parts] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]
    assert memory.split(batch, None) == memory.split(batch, 5) == [batch]


class Spare:
    """Spare memory that is there once."""

    def __init__(self) -> None:
        self.released: list[bool] = []

    def release(self) -> bool:
        self.released.append(not self.released)
        return self.released[-1]

    def refresh(self) -> None: ...


def test_spare_memory_is_given_back_before_passes_get_smaller(
    make_request: MakeRequest, scarce: Scarce, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, short = make_request("undisturbed", **SPEC), make_request("short", **SPEC)
    whole = run_here(undisturbed)
    spares = [Spare(), Spare()]
    make = AdapterTrainer.__init__

    def make_with_spares(self: AdapterTrainer, **options: Any) -> None:
        make(self, **options)
        self.spare_memory.extend(spares)

    monkeypatch.setattr(AdapterTrainer, "__init__", make_with_spares)
    scarce(2, 1)

    reports = run_here(short)

    # Both, the first time; then there is none, and the passes are halved.
    assert [spare.released for spare in spares] == [[True, False], [True, False]]
    said = [event.message for event in reports.events(Log) if "repeated without the memory" in event.message]
    assert (len(said), len(shortages(reports))) == (1, 1)
    assert losses(reports) == pytest.approx(losses(whole), rel=1e-4)
