"""Jobs that can't be created, in the official client: its exception classes, and OpenAI's codes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from pydantic import SecretStr

from app.core.jobs import queue, records as job_records
from app.core.settings import Settings
from app.core.storage.database import Database
from app.core.webhooks import deliveries
from app.main import create_app
from tests.api.openai.fine_tuning_jobs import create, dpo, supervised, upload, upload_preferences
from tests.factories import CHAT_ROW, jsonl, make_webhook
from tests.fakes import ServerThread


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"method": supervised({"n_epoch": 2})}, "method.supervised.hyperparameters.n_epoch"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 2, "num_train_epochs": 3}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"lora": 3}}, "hyperparameters.lora"),
        ({"hyperparameters": {"r": 0}}, "lora.r"),
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"method": {**supervised({}), "type": "dpo"}}, "method.supervised"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": supervised({"beta": 0.1})}, "method.supervised.hyperparameters.beta"),
        ({"method": dpo({"gamma": 0.1})}, "method.dpo.hyperparameters.gamma"),
        ({"method": dpo({"beta": 0})}, "method.dpo.hyperparameters.beta"),
        ({"method": dpo({"loss_type": "none"})}, "dpo.loss_type"),
        ({"integrations": [{"type": "neptune", "wandb": {"project": "x"}}]}, "integrations.0.type"),
        ({"integrations": [{"type": "wandb"}]}, "integrations.0.wandb"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "a/b"}}]}, "integrations.0.wandb.project"),
        ({"suffix": "a:b"}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
    ],
)
def test_what_is_not_understood_is_named(
    openai_client: openai.OpenAI, file_id: str, options: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(openai_client, file_id, **options)
    assert (caught.value.param or "").startswith(param)
    assert list(openai_client.fine_tuning.jobs.list()) == []


def test_a_file_or_a_model_that_is_not_there_is_not_found(openai_client: openai.OpenAI, file_id: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        create(openai_client, "file-none")
    assert (caught.value.param, caught.value.code) == ("training_file", "file_not_found")
    with pytest.raises(openai.NotFoundError) as caught:
        create(openai_client, file_id, model="nothing")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        openai_client.fine_tuning.jobs.retrieve("ftjob-none")


def test_a_file_of_few_rows_fails_the_job_in_validation(
    openai_client: openai.OpenAI, database: Database
) -> None:
    job = create(openai_client, upload(openai_client, 9))
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_n_examples", "training_file")
    assert "Training file has 9 examples, but must have at least 10 examples." in job.error.message
    assert job.finished_at is not None
    newest = openai_client.fine_tuning.jobs.list_events(job.id).data[0]
    assert (newest.level, "invalid training file" in newest.message) == ("error", True)
    with database.transaction() as session:
        assert queue.claim(session, "worker", lease_seconds=30) is None


@pytest.mark.parametrize("kind", ["training_file", "validation_file"])
def test_a_file_of_the_wrong_format_fails_the_job_with_its_lines(
    openai_client: openai.OpenAI, file_id: str, kind: str
) -> None:
    content = jsonl([CHAT_ROW] * 11) + b'{"messages": [{"role": "user"}]}\n'
    bad = openai_client.files.create(file=("bad.jsonl", content), purpose="fine-tune").id
    job = create(openai_client, file_id, **{kind: bad})
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_file_format", kind)
    assert "Invalid file format. Line 12:" in job.error.message


def test_a_file_of_another_methods_rows_fails_the_job_and_says_what_is_needed(
    openai_client: openai.OpenAI, file_id: str
) -> None:
    pairs = upload_preferences(openai_client, 12)
    learned = create(openai_client, pairs)
    assert (learned.status, learned.error.code, learned.error.param) == (
        "failed",
        "invalid_file_format",
        "training_file",
    )
    assert "The method sft learns from answers to imitate" in learned.error.message
    compared = create(openai_client, pairs, validation_file=file_id, method=dpo({}))
    assert (compared.status, compared.error.param) == ("failed", "validation_file")
    assert "The method dpo learns from comparisons" in compared.error.message


def test_a_job_that_failed_in_validation_can_not_be_retried_with_the_same_file(
    openai_client: openai.OpenAI, live: httpx.Client
) -> None:
    bad = openai_client.files.create(file=("bad.jsonl", b"not a row"), purpose="fine-tune").id
    job = create(openai_client, bad)
    assert live.post(f"/jobs/{job.id}/retry").status_code == 409
    assert openai_client.fine_tuning.jobs.retrieve(job.id).status == "failed"


def test_a_key_used_with_another_body_is_unprocessable(openai_client: openai.OpenAI, file_id: str) -> None:
    headers = {"Idempotency-Key": "one"}
    first, again = (create(openai_client, file_id, extra_headers=headers) for _ in range(2))
    assert first.id == again.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        create(openai_client, file_id, suffix="x", extra_headers=headers)
    assert caught.value.code == "idempotency_key_reused"


def test_a_model_that_is_not_allowed_is_forbidden(settings: Settings) -> None:
    settings.allowed_models = ["small"]
    with serving(settings) as client, pytest.raises(openai.PermissionDeniedError) as caught:
        create(client, upload(client, 12))
    assert caught.value.code == "model_not_allowed"


def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_back(settings: Settings) -> None:
    settings.max_queued_jobs = 1
    with serving(settings) as client:
        file = upload(client, 12)
        create(client, file)
        with pytest.raises(openai.RateLimitError) as caught:
            create(client, file)
    assert caught.value.response.headers["retry-after"] == "30"
    assert "x-should-retry" not in caught.value.response.headers


def test_a_defect_of_the_server_is_an_error_of_the_server(
    openai_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_records, "find_page", None)
    with pytest.raises(openai.InternalServerError) as caught:
        openai_client.fine_tuning.jobs.list()
    assert caught.value.request_id in str(caught.value)


def test_no_key_is_an_error_of_its_own(settings: Settings) -> None:
    settings.api_key = SecretStr("secret")
    with serving(settings) as client:
        for ask in (client.files.list, client.fine_tuning.jobs.list):
            with pytest.raises(openai.AuthenticationError):
                ask()


@contextmanager
def serving(settings: Settings) -> Iterator[openai.OpenAI]:
    server = ServerThread(create_app(settings))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
    server.stop()


def test_the_end_in_validation_is_announced_to_webhooks(
    openai_client: openai.OpenAI, live: httpx.Client, database: Database
) -> None:
    with database.transaction() as session:
        webhook_id = make_webhook(session).id
    create(openai_client, upload(openai_client, 1))
    with database.snapshot() as session:
        events = [
            delivery.event_type
            for delivery in deliveries.find_page(session, webhook_id, after=None, limit=9)[0]
        ]
    assert events == ["fine_tuning.job.failed"]
