"""Chat templates of whole jobs: which is taken, what is saved of it, and that serving uses the same."""

import json
import shutil
import threading
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import Conversation, Message, write_row
from app.core.jobs.events import Warn
from tests.tiny_model import DATED_TEMPLATE, NAME, TEMPLATE
from tests.worker.training.conftest import MakeRequest, run_here
from worker.inference.tokenizers import TokenizerCache
from worker.models.device import find_device
from worker.models.files import description
from worker.processes.reports import Advanced, CheckpointAdapterSaved, Outcome, TrainingRequest
from worker.templates.families import TEMPLATES
from worker.templates.renderer import render
from worker.training.attempt import TrainingAttempt
from worker.training.rows import PreparedRows, prepare_rows

SHORT: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-2}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + ']' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}"
    "{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def test_the_jobs_template_is_saved_with_the_adapter_and_named(make_request: MakeRequest) -> None:
    request = make_request(training=SHORT, chat_template=CHAT_TEMPLATE)

    assert run_here(request).ended.outcome is Outcome.FINISHED

    record = json.loads((request.output_folder / "tunesmith.json").read_text())
    kept = (request.output_folder / "chat_template.jinja").read_bytes()
    assert kept.decode() == CHAT_TEMPLATE
    assert record["chat_template"] == {
        "source": "job",
        "sha256": sha256(kept).hexdigest(),
        "rendered_at": request.model_dump(mode="json")["submitted_at"],
    }


def test_serving_renders_with_the_jobs_template(make_request: MakeRequest) -> None:
    request = make_request(training=SHORT, chat_template=CHAT_TEMPLATE)
    run_here(request)

    tokenizer = TokenizerCache().get(request.output_folder).tokenizer

    prompt = render(tokenizer, [Message("user", "How?")], add_generation_prompt=True)
    assert prompt == "<|begin|>[user]How?[assistant]"


def test_a_template_of_no_use_fails_the_job_before_the_model_is_loaded(make_request: MakeRequest) -> None:
    wrong = CHAT_TEMPLATE.replace("'[assistant]'", "'[model]'")

    reports = run_here(make_request(training=SHORT, chat_template=wrong))

    assert reports.ended.code == "invalid_request"
    assert "unlike the beginning" in (reports.ended.message or "")
    assert not [report for report in reports if isinstance(report, Advanced) and report.phase == "loading"]


def test_a_model_whose_prompts_are_not_what_it_is_trained_on_fails_at_once(
    make_request: MakeRequest, tmp_path: Path
) -> None:
    polite = TEMPLATE.replace("assistant\\n'", "assistant\\nSure. '")

    reports = run_here(with_template(make_request(training=SHORT), tmp_path, polite))

    assert reports.ended.code == "template_mismatch"
    assert "Sure. " in (reports.ended.message or "")


def test_a_model_whose_prompts_open_a_thought_learns_to_end_it(
    make_request: MakeRequest, tmp_path: Path
) -> None:
    """As DeepSeek-R1's distillations, whose template renders a finished answer without its thought."""
    thinking = TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'")

    reports = run_here(with_template(make_request(training=SHORT), tmp_path, thinking))

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended.message
    (warning,) = reports.events(Warn)
    assert warning.code == "empty_thoughts"
    assert "in 10 rows, line 1 first" in warning.message


@pytest.mark.parametrize(
    ("own", "source", "template"), [(None, "family", TEMPLATES["chatml"]), (TEMPLATE, "model", TEMPLATE)]
)
def test_a_base_model_is_trained_and_served_with_its_own_template_or_its_familys(
    make_request: MakeRequest, tmp_path: Path, own: str | None, source: str, template: str
) -> None:
    request = with_template(make_request(training=SHORT), tmp_path, own)

    reports = run_here(request)

    record = json.loads((request.output_folder / "tunesmith.json").read_text())
    assert record["chat_template"]["source"] == source
    assert not reports.events(Warn)
    cache = TokenizerCache()
    for folder in (request.models_folder / NAME, request.output_folder):
        tokenizer = cache.get(folder).tokenizer
        assert tokenizer.chat_template == template


@pytest.mark.usefixtures("a_day_passes_at_every_look")
def test_a_job_that_passes_midnight_finishes(make_request: MakeRequest, tmp_path: Path) -> None:
    request = make_request(
        training={"num_train_epochs": 2, "learning_rate": 1e-2, "keep_checkpoints": 1}
    ).model_copy(update={"submitted_at": datetime(2026, 3, 5, 23, 59, tzinfo=UTC)})

    reports = run_here(with_template(request, tmp_path, DATED_TEMPLATE))

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended.message
    folders = [report.folder for report in reports if isinstance(report, CheckpointAdapterSaved)]
    assert folders
    for folder in (request.output_folder, *folders):
        record = json.loads((folder / "tunesmith.json").read_text())
        assert record["chat_template"]["rendered_at"] == "2026-03-05T23:59:00Z"


@pytest.mark.usefixtures("a_day_passes_at_every_look")
def test_an_attempt_on_the_next_day_trains_on_the_same_tokens(
    make_request: MakeRequest, tmp_path: Path
) -> None:
    """Also with rows masked by comparing texts, which are rendered one after the other."""
    first = with_template(
        make_request(training={**SHORT, "assistant_only_loss": True}), tmp_path, DATED_TEMPLATE
    )
    second = first.model_copy(update={"attempt": 2})

    before, after = (prepare(request) for request in (first, second))

    assert before.train == after.train
    folder = first.models_folder / NAME
    assert first.submitted_at.strftime("%d %b %Y") in description.load_tokenizer(folder).decode(
        before.train[0].input_ids
    )


@pytest.mark.parametrize("template", [None, TEMPLATES["chatml"]])
def test_an_adapter_of_calls_has_a_template_that_renders_them(
    make_request: MakeRequest, tmp_path: Path, template: str | None
) -> None:
    """Also in another program, which knows nothing of the plain form."""
    call = ToolCall(name="get_tide", arguments={"pier": "north"})
    tools = (FunctionTool(name="get_tide", description="The tide."),)
    messages = (Message("user", "How?"), Message("assistant", "", tool_calls=(call,)))
    request = with_template(make_request(training=SHORT), tmp_path, template)
    request.dataset.write_bytes(b"".join([write_row(line, Conversation(messages)) for line in range(4)]))

    ran = run_here(request)

    assert ran.ended.outcome is Outcome.FINISHED
    assert "plain_functions" in {warning.code for warning in ran.events(Warn)}
    tokenizer = description.load_tokenizer(request.output_folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How?"}],
        tools=[tools[0].as_template_tool()],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert "<tools>" in text
    assert text == render(tokenizer, messages[:1], add_generation_prompt=True, tools=tools)


def prepare(request: TrainingRequest) -> PreparedRows:
    folder = request.models_folder / NAME
    attempt = TrainingAttempt(request, find_device(), lambda report: None, threading.Event())
    return prepare_rows(attempt, description.load_tokenizer(folder), folder, 256, 1000)


def with_template(request: TrainingRequest, folder: Path, template: str | None) -> TrainingRequest:
    """The request, for a copy of its base model with another template or without any."""
    model = folder / "models" / NAME
    shutil.copytree(request.models_folder / NAME, model)
    (model / "chat_template.jinja").unlink()
    if template is not None:
        (model / "chat_template.jinja").write_text(template)
    return request.model_copy(update={"models_folder": model.parent})
