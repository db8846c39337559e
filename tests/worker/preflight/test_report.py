"""The preflight report of a job compared with what the job itself does."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.core.datasets.rows import PlainText
from app.core.engine.preflight import PreflightRequest
from app.core.settings import TrainingPath
from tests.tiny_model import DATED_TEMPLATE
from tests.worker.preflight.conftest import GPU, Ask, Store, codes, make_rows, make_training_request
from worker.preflight import environment as environments
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.report import run_preflight
from worker.processes.reports import Advanced
from worker.training.run import run


def real_steps(request: PreflightRequest, environment: PreflightEnvironment, folder: Path) -> int:
    """The optimizer steps that a real training child announces."""
    announced: list[int] = []
    stop = threading.Event()

    def send(report: Any) -> None:
        if isinstance(report, Advanced) and report.total_steps:
            announced.append(report.total_steps)
            stop.set()

    run(make_training_request(request, environment, folder), send, stop)
    return announced[0]


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"num_train_epochs": 2.5, "gradient_accumulation_steps": 3},
        {"packing": True, "max_seq_length": 128, "per_device_train_batch_size": 2},
        {"max_steps": 7, "validation_split": 0.2},
        {"num_train_epochs": 3, "validation_split": 0.3, "group_by_length": False},
    ],
)
def test_steps_are_those_of_the_trainer(
    ask: Ask, environment: PreflightEnvironment, tmp_path: Path, training: dict[str, Any]
) -> None:
    request = ask(make_rows(23), training=training)

    assert run_preflight(request, environment).optimizer_steps == real_steps(request, environment, tmp_path)


def test_rows_and_tokens_are_counted(ask: Ask, environment: PreflightEnvironment) -> None:
    answer = run_preflight(ask(make_rows(20), training={"validation_split": 0.25}), environment)

    assert (answer.rows, answer.training_rows, answer.evaluation_rows) == (20, 15, 5)
    assert sum(bar.rows for bar in answer.tokens.histogram) == 15
    assert answer.tokens.histogram[-1].up_to >= answer.tokens.max > answer.tokens.histogram[-1].up_to / 2
    assert answer.tokens.p50 <= answer.tokens.p95 <= answer.tokens.max
    assert answer.tokens.total == pytest.approx(15 * answer.tokens.mean)
    assert answer.sampled_rows is None


def test_rows_of_a_validation_dataset_are_counted(
    ask: Ask, environment: PreflightEnvironment, store: Store
) -> None:
    request = ask(make_rows(20), validation_dataset="ds_1").model_copy(
        update={"validation_dataset": store(make_rows(7), "validation")}
    )

    answer = run_preflight(request, environment)

    assert (answer.training_rows, answer.evaluation_rows) == (20, 7)


def test_only_the_assistant_is_trained_when_asked(ask: Ask, environment: PreflightEnvironment) -> None:
    whole, assistant = (
        run_preflight(ask(training={"assistant_only_loss": only}), environment) for only in (False, True)
    )

    assert 0 < assistant.trained_token_share < 0.5 < whole.trained_token_share < 1
    assert assistant.tokens == whole.tokens


def test_grouping_by_length_saves_padding(ask: Ask, environment: PreflightEnvironment) -> None:
    grouped, mixed = (
        run_preflight(ask(make_rows(200), training={"group_by_length": group}), environment)
        for group in (True, False)
    )

    assert grouped.padding_share < mixed.padding_share
    assert mixed.padding_share > 0.1


def test_a_large_dataset_is_sampled(
    ask: Ask, environment: PreflightEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = run_preflight(ask(make_rows(100)), environment)
    monkeypatch.setattr(environments, "MAX_ROWS", 30)

    answer = run_preflight(ask(make_rows(100)), environment)

    assert answer.sampled_rows == 25
    assert (answer.rows, answer.training_rows) == (100, 100)
    assert answer.optimizer_steps == exact.optimizer_steps
    assert answer.tokens.total == pytest.approx(exact.tokens.total, rel=0.5)
    assert "sampled" in codes(answer)


def test_rows_that_take_long_are_sampled_after_the_first_ones(
    ask: Ask, environment: PreflightEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = run_preflight(ask(make_rows(100)), environment)
    monkeypatch.setattr(environments, "READING_SECONDS", 1e-9)

    answer = run_preflight(ask(make_rows(100)), environment)

    assert (exact.sampled_rows, answer.sampled_rows) == (None, 64)
    assert (answer.rows, answer.training_rows, answer.optimizer_steps) == (100, 100, exact.optimizer_steps)


def test_a_job_that_does_not_fit_gets_a_notice(ask: Ask, environment: PreflightEnvironment) -> None:
    small = environment.model_copy(update={"device": GPU, "free_bytes": 100 << 20})

    answer = run_preflight(ask(), small)

    assert not answer.fits
    assert answer.chosen.gradient_checkpointing
    assert answer.chosen.mixed_precision == answer.chosen.compute_dtype.replace("bfloat16", "bf16")
    assert "memory_short" in codes(answer)


def test_memory_is_that_of_the_path_that_jobs_take(ask: Ask, environment: PreflightEnvironment) -> None:
    large = environment.model_copy(update={"device": GPU, "free_bytes": GPU.memory_bytes})

    fast, plain = (run_preflight(ask(), large.model_copy(update={"path": path})) for path in TrainingPath)

    assert fast.memory.activations < plain.memory.activations
    assert fast.memory.weights == plain.memory.weights


def test_the_report_has_automatic_settings_and_needs(ask: Ask, environment: PreflightEnvironment) -> None:
    answer = run_preflight(ask(), environment)

    assert answer.fits
    assert not answer.chosen.gradient_checkpointing
    assert answer.chosen.max_seq_length == 256
    memory = answer.memory
    parts = [memory.weights, memory.lora, memory.optimizer, memory.activations, memory.overhead]
    assert memory.total == sum(parts)
    assert answer.disk.checkpoints > 0 < answer.disk.adapter < answer.disk.free
    assert answer.time.basis == "guess"


def test_plain_text_needs_no_template(ask: Ask, environment: PreflightEnvironment) -> None:
    answer = run_preflight(ask([PlainText("Some text. " * 9)] * 3), environment)

    assert codes(answer) == ["few_steps"]


@pytest.mark.usefixtures("a_day_passes_at_every_look")
def test_rows_are_read_at_one_moment_also_where_midnight_passes(
    ask: Ask, environment: PreflightEnvironment
) -> None:
    """Masks are found by comparing texts, which are rendered one after the other."""
    request = ask(chat_template=DATED_TEMPLATE, training={"assistant_only_loss": True})

    assert run_preflight(request, environment).trained_token_share < 1


@pytest.mark.usefixtures("a_day_passes_at_every_look")
def test_the_rows_of_a_submitted_job_are_read_at_the_moment_of_its_submission(
    ask: Ask, environment: PreflightEnvironment
) -> None:
    """The date's length differs, and so do the tokens."""
    template = DATED_TEMPLATE.replace("%d %b %Y", "%A" * 5)
    tokens = [
        run_preflight(
            ask(chat_template=template).model_copy(
                update={"submitted_at": datetime(2026, 3, day, tzinfo=UTC)}
            ),
            environment,
        ).tokens.total
        for day in (1, 4)
    ]

    assert tokens[0] < tokens[1]  # Sunday and Wednesday


@pytest.mark.parametrize(
    ("resources", "strategy", "reason"),
    [
        ({"gpus": 1}, None, None),
        ({"gpus": 2}, "ddp", "the job fits one of them"),
        ({"nodes": 2}, "ddp", "the job fits one of them"),
        ({"gpus": 2, "strategy": "fsdp"}, "fsdp", "resources.strategy asks for it"),
    ],
)
def test_how_several_gpus_share_the_base_model_is_said(
    ask: Ask,
    environment: PreflightEnvironment,
    resources: dict[str, Any],
    strategy: str | None,
    reason: str | None,
) -> None:
    request = ask(make_rows(10), resources=resources, quantization={"load_in_4bit": False})

    chosen = run_preflight(request, environment).chosen

    assert chosen.strategy == strategy
    assert (chosen.strategy_reason or "").startswith(reason or "")
    assert (chosen.strategy_reason is None) is (reason is None)


def test_a_job_that_divides_the_base_model_generates_no_answers(
    ask: Ask, environment: PreflightEnvironment
) -> None:
    found = [
        run_preflight(
            ask(
                make_rows(20),
                resources={"gpus": 2, "strategy": strategy},
                quantization={"load_in_4bit": False},
                training={"validation_split": 0.5},
            ),
            environment,
        )
        for strategy in ("ddp", "fsdp")
    ]

    assert [answer.time.sample_seconds > 0 for answer in found] == [True, False]
    assert ["no_answers" in codes(answer) for answer in found] == [False, True]
