"""What a preflight report warns of."""

from pathlib import Path
from typing import Any

import pytest

from app.core.datasets.rows import Completion, Conversation, Row
from app.core.engine.messages import ServingPath
from app.core.errors.jobs import BadTarget
from tests.worker.preflight.conftest import Ask, chat, codes, make_rows, with_model
from tests.worker.templates.test_families import published
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.report import run_preflight


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


def test_another_job_on_the_device_is_mentioned(ask: Ask, environment: PreflightEnvironment) -> None:
    assert "device_busy" in codes(run_preflight(ask(), environment.model_copy(update={"is_busy": True})))


def test_targets_of_a_family_without_a_default_are_told_as_the_job_tells_them(
    environment: PreflightEnvironment, ask: Ask, tmp_path: Path, models_folder: Path
) -> None:
    environment = with_model(environment, models_folder, tmp_path / "models", "olmo2", "Olmo2ForCausalLM")

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
