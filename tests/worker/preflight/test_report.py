"""The preflight report of a job compared with what the job itself does."""

import json
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from app.core.datasets.rows import Completion, Conversation, PlainText, Row
from app.core.engine.messages import ServingPath
from app.core.engine.preflight import CheckRequest, Preflight, PreflightRequest
from app.core.errors import InvalidRequest
from app.core.errors.base_models import ModelUnreadable
from app.core.errors.datasets import DatasetNotFound
from app.core.errors.jobs import BadTarget, NothingToLearn
from app.core.settings import TrainingPath
from tests.tiny_model import DATED_TEMPLATE, NAME
from tests.worker.preflight.conftest import GPU, Ask, Store, chat, make_rows
from tests.worker.templates.test_families import published
from worker.preflight import environment as environments
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.report import check_spec, run_preflight
from worker.processes.reports import Advanced, TrainingRequest
from worker.training.run import run


def codes(answer: Preflight) -> list[str]:
    return [warning.code for warning in answer.warnings]


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


def make_training_request(
    request: PreflightRequest, environment: PreflightEnvironment, folder: Path
) -> TrainingRequest:
    return TrainingRequest(
        job_id="job_0000000000000000",
        attempt=1,
        spec=request.spec,
        dataset=Path(environment.artifacts_url) / request.dataset.artifact,
        dataset_format="messages",
        dataset_sha256="0" * 64,
        models_folder=environment.models_folder,
        job_folder=folder / "job",
        output_folder=folder / "adapter",
    )


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


def test_a_validation_dataset_that_teaches_nothing_is_named(
    ask: Ask, environment: PreflightEnvironment, store: Store
) -> None:
    lost = store([Completion("word " * 60, "lost")], "validation")
    request = ask(training={"max_seq_length": 64}).model_copy(update={"validation_dataset": lost})

    with pytest.raises(NothingToLearn, match="validation dataset"):
        run_preflight(request, environment)


def test_cut_and_dropped_rows_are_named(ask: Ask, environment: PreflightEnvironment) -> None:
    rows: list[Row] = [
        Completion("hi ", "there"),
        Completion("word " * 60, "lost"),
        Completion("a", "b " * 60),
    ]

    answer = run_preflight(ask(rows, training={"max_seq_length": 32}), environment)

    assert (answer.truncated.count, answer.truncated.lines) == (2, [20, 30])
    assert (answer.dropped.count, answer.dropped.lines) == (1, [20])
    assert answer.training_rows == 2
    assert {"rows_cut", "rows_dropped"} <= set(codes(answer))


@pytest.mark.parametrize(
    ("lora", "path", "reason"),
    [({}, "paged", None), ({"use_dora": True, "bias": "all"}, "general", "lora.use_dora, lora.bias")],
)
def test_how_the_adapter_will_be_served_is_said(
    ask: Ask, environment: PreflightEnvironment, lora: dict[str, Any], path: str, reason: str | None
) -> None:
    answer = run_preflight(ask(make_rows(8), lora={"r": 2, **lora}), environment)

    assert (answer.serving.path, answer.serving.reason) == (path, reason)
    assert ("general_path" in codes(answer)) is (path == "general")


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


def test_another_job_on_the_device_is_mentioned(ask: Ask, environment: PreflightEnvironment) -> None:
    assert "device_busy" in codes(run_preflight(ask(), environment.model_copy(update={"is_busy": True})))


@pytest.mark.parametrize(
    ("rows", "spec", "error"),
    [
        (None, {"lora": {"target_modules": ["nothing"]}}, BadTarget),
        ([Completion("word " * 60, "lost")], {"training": {"max_seq_length": 16}}, NothingToLearn),
        ([chat("one")], {"training": {"validation_split": 0.5}}, NothingToLearn),
        (None, {"training": {"fp16": True}}, InvalidRequest),
    ],
)
def test_what_the_job_would_fail_with_is_raised(
    ask: Ask,
    environment: PreflightEnvironment,
    rows: list[Row] | None,
    spec: dict[str, Any],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        run_preflight(ask(rows, **spec), environment)


def test_weights_that_are_missing_are_named_before_rows_are_read(
    ask: Ask, environment: PreflightEnvironment, tmp_path: Path, models_folder: Path
) -> None:
    """At submission, in a preflight, and by the job itself; the row has nothing to learn."""
    file = shutil.copytree(models_folder / NAME, tmp_path / "models" / NAME) / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, {"format": "pt"})
    environment = environment.model_copy(update={"models_folder": tmp_path / "models"})
    request = ask([Completion("word " * 60, "lost")], training={"max_seq_length": 16})

    with pytest.raises(ModelUnreadable, match=r"they lack model\.norm\.weight"):
        check_spec(CheckRequest(spec=request.spec), environment)
    with pytest.raises(ModelUnreadable, match=r"they lack model\.norm\.weight"):
        run_preflight(request, environment)
    ended = run(make_training_request(request, environment, tmp_path), lambda report: None, threading.Event())
    assert ended.code == "model_unreadable"


def test_a_dataset_without_its_file_is_not_found(
    ask: Ask, environment: PreflightEnvironment, store: Store, tmp_path: Path
) -> None:
    request = ask()
    (tmp_path / request.dataset.artifact).unlink()

    with pytest.raises(DatasetNotFound):
        run_preflight(request, environment)


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


def test_targets_of_a_family_without_a_default_are_told_as_the_job_tells_them(
    environment: PreflightEnvironment, ask: Ask, tmp_path: Path, models_folder: Path
) -> None:
    folder = tmp_path / "models" / NAME
    shutil.copytree(models_folder / NAME, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    environment = environment.model_copy(update={"models_folder": folder.parent})

    answer = run_preflight(ask(), environment)

    told = next(warning for warning in answer.warnings if warning.code == "default_targets")
    assert "'olmo2', so every linear layer gets an adapter" in told.message
    with pytest.raises(BadTarget, match="'v_porj'"):
        run_preflight(ask(lora={"target_modules": ["q_proj", "v_porj"]}), environment)


def test_what_the_template_leaves_out_is_counted(ask: Ask, environment: PreflightEnvironment) -> None:
    thinking = Conversation(chat("0+1?", "<think>\nAdd one.\n</think>\n\n1").messages * 2)

    answer = run_preflight(
        ask([thinking, *make_rows(3), thinking], chat_template=published("qwen3")), environment
    )

    found = {warning.code: warning.message for warning in answer.warnings}
    assert "a part of 2 rows" in found["template_omits"]
    assert "In line 10 these are 25 characters of message 2: '<think>" in found["template_omits"]


def test_how_the_adapter_will_be_served_is_said_as_the_job_says_it(
    environment: PreflightEnvironment, ask: Ask
) -> None:
    plain, dora = (run_preflight(ask(lora={"use_dora": dora}), environment) for dora in (False, True))

    assert (plain.serving.path, plain.serving.reason) == (ServingPath.PAGED, None)
    assert (dora.serving.path, dora.serving.reason) == (ServingPath.GENERAL, "lora.use_dora")
    told = next(warning.message for warning in dora.warnings if warning.code == "general_path")
    assert told.endswith("The reason: lora.use_dora.")
    assert "general_path" not in codes(plain)


def test_packing_that_lets_rows_read_each_other_is_refused(
    environment: PreflightEnvironment, ask: Ask, tmp_path: Path, models_folder: Path
) -> None:
    folder = Path(shutil.copytree(models_folder / NAME, tmp_path / "models" / NAME))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    environment = environment.model_copy(update={"models_folder": folder.parent})

    with pytest.raises(InvalidRequest, match="would read each other"):
        run_preflight(ask(training={"packing": True, "max_seq_length": 64}), environment)
    assert run_preflight(ask(), environment).serving.path is ServingPath.GENERAL
