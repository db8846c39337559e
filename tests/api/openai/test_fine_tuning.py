"""Fine-tuning jobs as the official client creates, lists and changes them; each is a native job."""

import json
from typing import Any

import httpx
import openai
import pytest

from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.jobs import records as job_records
from app.core.specs.tracking import Tracker
from app.core.storage.database import Database
from tests.api.openai.fine_tuning_jobs import (
    claim,
    create,
    dpo,
    finish,
    supervised,
    upload,
    upload_preferences,
)
from tests.factories import jsonl, make_job
from tests.fakes import FakeEngine


def test_a_job_made_here_is_a_native_job(
    openai_client: openai.OpenAI, live: httpx.Client, file_id: str
) -> None:
    job = create(openai_client, file_id, seed=7, metadata={"team": "support"})
    assert (job.object, job.status, job.model, job.training_file, job.seed) == (
        ("fine_tuning.job", "queued", "owner/model", file_id, 7)
    )
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (8, 4)
    assert job.method.supervised.hyperparameters.learning_rate_multiplier == 1
    assert (job.result_files, job.fine_tuned_model, job.error, job.metadata) == (
        ([], None, None, {"team": "support"})
    )
    native = live.get(f"/jobs/{job.id}").json()
    assert native["spec"]["training"]["num_train_epochs"] == 8
    assert native["spec"]["training"]["seed"] == 7


def test_a_file_of_calls_is_learned_from(openai_client: openai.OpenAI, live: httpx.Client) -> None:
    """The row is that of OpenAI's guide to fine-tuning with functions, with the tide for the weather."""
    call = {"id": "call_id", "type": "function", "function": {"name": "get_tide", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": "How high is it?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_id", "content": "1.2 m"},
            {"role": "assistant", "content": "It is 1.2 m high.", "weight": 1},
        ],
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": {"name": "get_tide", "description": "The tide."}}],
    }
    file = openai_client.files.create(file=("calls.jsonl", jsonl([row] * 10)), purpose="fine-tune")

    job = create(openai_client, file.id)

    assert (job.status, job.error) == ("queued", None)
    assert [one["field"] for one in live.get(f"/datasets/{file.id}").json()["unused_fields"]] == [
        "parallel_tool_calls"
    ]
    stored = live.get(f"/datasets/{file.id}/download").text.splitlines()[0]
    assert json.loads(stored)["messages"][1]["tool_calls"][0]["function"]["name"] == "get_tide"


def test_a_native_job_shows_here(openai_client: openai.OpenAI, database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session, training={"learning_rate": 1e-3, "per_device_train_batch_size": 2}).id
    job = openai_client.fine_tuning.jobs.retrieve(job_id)
    assert (job.hyperparameters.learning_rate_multiplier, job.hyperparameters.batch_size) == (5, 2)
    assert [job.id for job in openai_client.fine_tuning.jobs.list()] == [job_id]


@pytest.mark.parametrize("is_deprecated", [False, True])
def test_hyperparameters_and_our_own_fields_among_them(
    openai_client: openai.OpenAI, live: httpx.Client, file_id: str, is_deprecated: bool
) -> None:
    asked: Any = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5, "r": 8}
    asked |= {"lora": {"alpha": 32}, "max_seq_length": 64}
    where = {"hyperparameters": asked} if is_deprecated else {"method": supervised(asked)}
    job = create(openai_client, file_id, **where, extra_body={"training": {"save_steps": 3}, "name": "bot"})
    native = live.get(f"/jobs/{job.id}").json()
    training, lora = native["spec"]["training"], native["spec"]["lora"]
    assert (training["num_train_epochs"], training["learning_rate"]) == (2, 1e-4)
    assert (training["save_steps"], training["max_seq_length"]) == (3, 64)
    assert (lora["r"], lora["alpha"], native["name"]) == (8, 32, "bot")


def test_a_job_learns_from_preferences(openai_client: openai.OpenAI, live: httpx.Client) -> None:
    file_id = upload_preferences(openai_client, 12)
    assert openai_client.files.retrieve(file_id).status == "processed"
    job = create(
        openai_client,
        file_id,
        method=dpo({"beta": 0.2, "learning_rate_multiplier": 2, "loss_type": "ipo", "r": 8}),
    )
    assert (job.status, job.method.type) == ("queued", "dpo")
    assert job.method.supervised is None
    used = job.method.dpo.hyperparameters
    assert (used.beta, used.learning_rate_multiplier, used.batch_size) == (0.2, 2, 4)
    spec = live.get(f"/jobs/{job.id}").json()["spec"]
    assert (spec["method"], spec["dpo"]["beta"], spec["dpo"]["loss_type"]) == ("dpo", 0.2, "ipo")
    assert (spec["training"]["learning_rate"], spec["lora"]["r"]) == (4e-5, 8)
    assert openai_client.fine_tuning.jobs.retrieve(job.id).method.dpo.hyperparameters.beta == 0.2


def test_hyperparameters_of_preferences_may_be_auto(openai_client: openai.OpenAI) -> None:
    file_id = upload_preferences(openai_client, 12)
    job = create(openai_client, file_id, method=dpo({"beta": "auto", "n_epochs": "auto"}))
    used = job.method.dpo.hyperparameters
    assert (used.beta, used.n_epochs, used.learning_rate_multiplier) == (0.1, 8, 1)


def test_the_suffix_names_the_model_that_answers_at_once(
    openai_client: openai.OpenAI, database: Database, file_id: str, engine: FakeEngine
) -> None:
    job = create(openai_client, file_id, suffix="support")
    finish(database, claim(database))
    done = openai_client.fine_tuning.jobs.retrieve(job.id)
    name = f"ft:owner/model:tunesmith:support:{job.id.removeprefix('job_')}"
    assert (done.status, done.fine_tuned_model) == ("succeeded", name)
    openai_client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}])
    assert engine.requests[0].adapter is not None
    assert openai_client.models.retrieve(name).id == name
    assert openai_client.models.delete(name).deleted
    assert openai_client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None


def test_a_model_without_a_suffix_still_has_its_place(
    openai_client: openai.OpenAI, database: Database, file_id: str
) -> None:
    job = create(openai_client, file_id)
    finish(database, claim(database))
    name = openai_client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert name == f"ft:owner/model:tunesmith::{job.id.removeprefix('job_')}"


def test_a_fine_tuned_model_is_trained_on(
    openai_client: openai.OpenAI, live: httpx.Client, file_id: str
) -> None:
    job = create(openai_client, file_id, model="helper")
    assert job.model == "owner/model"
    assert live.get(f"/jobs/{job.id}").json()["spec"]["continue_from"] == "ad_0000000000000000"


def test_pages_are_stable_while_jobs_are_added(openai_client: openai.OpenAI, file_id: str) -> None:
    ids = [create(openai_client, file_id).id for _ in range(5)]
    seen = []
    for job in openai_client.fine_tuning.jobs.list(limit=2):
        seen.append(job.id)
        create(openai_client, file_id)
    assert seen == ids[::-1]


def test_jobs_are_found_by_their_metadata(openai_client: openai.OpenAI, file_id: str) -> None:
    one = create(openai_client, file_id, metadata={"team": "a b", "a.b, {c}": "1"}).id
    two = create(openai_client, file_id, metadata={"team": "a b"}).id
    plain = create(openai_client, file_id).id

    def found(metadata: dict[str, str]) -> list[str]:
        return [job.id for job in openai_client.fine_tuning.jobs.list(metadata=metadata)]

    assert found({"team": "a b"}) == [two, one]
    assert found({"team": "a b", "a.b, {c}": "1"}) == [one]
    assert found({"team": "other"}) == []
    without = openai_client.fine_tuning.jobs.list(extra_query={"metadata": "null"})
    assert [job.id for job in without] == [plain]
    with pytest.raises(openai.BadRequestError):
        found({'a"b': "1"})


def test_a_job_is_cancelled_paused_and_resumed(openai_client: openai.OpenAI, file_id: str) -> None:
    job = create(openai_client, file_id)
    steer = openai_client.fine_tuning.jobs
    assert steer.pause(job.id).status == "paused"
    assert steer.resume(job.id).status == "queued"
    cancelled = steer.cancel(job.id)
    assert (cancelled.status, cancelled.finished_at is None) == ("cancelled", False)
    for change in (steer.cancel, steer.pause, steer.resume):
        with pytest.raises(openai.ConflictError) as caught:
            change(job.id)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert caught.value.request_id


def test_a_retried_create_makes_no_second_job(openai_client: openai.OpenAI, file_id: str) -> None:
    first = create(openai_client, file_id)
    retried = create(openai_client, file_id, extra_headers={"x-stainless-retry-count": "1"})
    assert retried.id == first.id
    again = create(openai_client, file_id)
    assert again.id != first.id
    assert len(list(openai_client.fine_tuning.jobs.list())) == 2


def test_the_file_of_a_paused_job_is_kept(
    openai_client: openai.OpenAI, database: Database, file_id: str
) -> None:
    job = create(openai_client, file_id)
    openai_client.fine_tuning.jobs.pause(job.id)
    with pytest.raises(openai.ConflictError) as caught:
        openai_client.files.delete(file_id)
    assert caught.value.code == "file_in_use"
    with database.transaction() as session:
        job_records.request_cancel(session, job.id)
    assert openai_client.files.delete(file_id).deleted


class LosesFirstAnswers(httpx.HTTPTransport):
    """Sends every request, and loses the first response to each path that is posted to."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if request.method == "POST" and request.url.path not in self.lost:
            self.lost.append(request.url.path)
            answer.read()
            raise httpx.ReadError("lost")
        return answer


def test_a_client_that_lost_the_answer_comes_back_and_makes_nothing_twice(live: httpx.Client) -> None:
    transport = LosesFirstAnswers()
    url = str(live.base_url.join("/v1"))
    with openai.OpenAI(base_url=url, api_key="none", http_client=httpx.Client(transport=transport)) as client:
        job = create(client, upload(client, 12))
        assert transport.lost == ["/v1/files", "/v1/fine_tuning/jobs"]
        assert [one.id for one in client.fine_tuning.jobs.list()] == [job.id]
        assert [one.id for one in client.files.list()] == [job.training_file]


def test_the_integration_with_wandb_is_the_jobs_own(
    openai_client: openai.OpenAI, live: httpx.Client, file_id: str, database: Database
) -> None:
    with database.transaction() as session:
        workers.heartbeat(session, WorkerReport("worker-2", ["train"], trackers=[Tracker.WANDB]))
    named: dict[str, Any] = {"project": "support", "name": "first try", "entity": "us", "tags": ["small"]}
    job = create(openai_client, file_id, integrations=[{"type": "wandb", "wandb": named}])
    [integration] = job.integrations
    assert integration.model_dump() == {"type": "wandb", "wandb": named}
    assert live.get(f"/jobs/{job.id}").json()["spec"]["report_to"] == ["tensorboard", "wandb"]
    assert create(openai_client, file_id).integrations == []
