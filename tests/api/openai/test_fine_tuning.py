"""Fine-tuning jobs as the official client makes, lists and steers them; each is a native job."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from pydantic import SecretStr

from app.core import adapters, deliveries, jobs, queue
from app.core.database import Database
from app.core.events import Checkpoint, Evaluation, Log, Metrics, Warn
from app.core.queue import Failure, Lease
from app.core.settings import Settings
from app.main import create_app
from tests.factories import CHAT_ROW, jsonl, make_adapter, make_job, make_webhook
from tests.fakes import FakeEngine, ServerThread


@pytest.fixture
def file_id(openai_client: openai.OpenAI) -> str:
    return upload(openai_client, 12)


def upload(client: openai.OpenAI, rows: int) -> str:
    return client.files.create(file=("rows.jsonl", jsonl([CHAT_ROW] * rows)), purpose="fine-tune").id


def create(client: openai.OpenAI, file_id: str, **options: Any) -> Any:
    return client.fine_tuning.jobs.create(**{"model": "owner/model", "training_file": file_id, **options})


def claim(database: Database) -> Lease:
    with database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
    assert lease is not None
    return lease


def finish(database: Database, lease: Lease, *, checkpoints: tuple[int, ...] = ()) -> None:
    with database.transaction() as session:
        for step in (*checkpoints, None):
            make_ids = (
                adapters.name_artifact(lease.job_id, lease.attempt)
                if step is None
                else adapters.name_checkpoint_artifact(lease.job_id, step)
            )
            adapter = adapters.add(
                session,
                make_ids[0],
                spec=lease.spec,
                job_id=lease.job_id,
                artifact=make_ids[1],
                size_bytes=1,
                step=step,
            )
        queue.succeed(session, lease, adapter_name=adapter.name)


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


def supervised(hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"method": supervised({"n_epoch": 2})}, "method.supervised.hyperparameters.n_epoch"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 2, "num_train_epochs": 3}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"lora": 3}}, "hyperparameters.lora"),
        ({"hyperparameters": {"r": 0}}, "lora.r"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations"),
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


def test_a_job_that_failed_in_validation_can_not_be_retried_with_the_same_file(
    openai_client: openai.OpenAI, live: httpx.Client
) -> None:
    bad = openai_client.files.create(file=("bad.jsonl", b"not a row"), purpose="fine-tune").id
    job = create(openai_client, bad)
    assert live.post(f"/jobs/{job.id}/retry").status_code == 409
    assert openai_client.fine_tuning.jobs.retrieve(job.id).status == "failed"


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


def test_events_come_newest_first_in_openais_words(
    openai_client: openai.OpenAI, database: Database, file_id: str
) -> None:
    job = create(openai_client, file_id)
    lease = claim(database)
    with database.transaction() as session:
        said = [
            Log(message="Loaded."),
            Metrics(step=1, total_steps=2, epoch=0.5, loss=1.234, token_accuracy=0.5),
            Evaluation(step=1, epoch=0.5, loss=2.5),
            Checkpoint(step=1),
            Warn(code="slow", message="It is slow."),
        ]
        queue.record(session, lease, said)
    finish(database, lease)
    newest = list(openai_client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert [event.message for event in newest] == [
        f"New fine-tuned model created: ft:owner/model:tunesmith::{job.id.removeprefix('job_')}",
        "It is slow.",
        "Checkpoint created at step 1",
        "Step 1: validation loss=2.50",
        "Step 1/2: training loss=1.23",
        "Loaded.",
        "Fine-tuning job started",
        "Files validated, moving job to queued state",
    ]
    assert [event.level for event in newest[:3]] == ["info", "warn", "info"]
    assert newest[4].type == "metrics"
    assert newest[4].data["train_loss"] == 1.234  # type: ignore[index]
    assert newest[4].data["train_mean_token_accuracy"] == 0.5  # type: ignore[index]


@pytest.mark.parametrize("after", ["ftevent_other_3", "1", "ftevent_x_٣"])
def test_a_cursor_of_events_that_is_none_is_refused(
    openai_client: openai.OpenAI, file_id: str, after: str
) -> None:
    job = create(openai_client, file_id)
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.fine_tuning.jobs.list_events(job.id, after=after)
    assert caught.value.param == "after"


def test_checkpoints_have_names_and_losses(
    openai_client: openai.OpenAI, database: Database, file_id: str
) -> None:
    job = create(openai_client, file_id, suffix="s")
    lease = claim(database)
    with database.transaction() as session:
        points = [Metrics(step=step, total_steps=30, epoch=1, loss=1 / step) for step in (9, 20, 30)]
        evaluated = Evaluation(step=10, epoch=1, loss=3, token_accuracy=0.25)
        queue.record(session, lease, [points[0], evaluated, *points[1:]], queue.Progress(step=30))
    finish(database, lease, checkpoints=(10, 20))
    final = openai_client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    found = list(openai_client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [one.fine_tuned_model_checkpoint for one in found] == [
        final,
        f"{final}:ckpt-step-20",
        f"{final}:ckpt-step-10",
    ]
    assert [one.step_number for one in found] == [30, 20, 10]
    metrics = found[-1].metrics
    assert (metrics.step, metrics.train_loss, metrics.valid_loss) == (10, 1 / 9, 3)
    assert metrics.full_valid_mean_token_accuracy == 0.25
    assert openai_client.models.retrieve(f"{final}:ckpt-step-10").id == f"{final}:ckpt-step-10"


def test_a_failed_job_says_why_and_how_many_tokens_it_saw(
    openai_client: openai.OpenAI, database: Database, file_id: str
) -> None:
    job = create(openai_client, file_id)
    lease = claim(database)
    with database.transaction() as session:
        queue.record(session, lease, [Metrics(step=1, total_steps=2, epoch=1, loss=1, tokens=99)])
        queue.fail(session, lease, Failure("out_of_memory", "Out of memory.", "Use less."))
    failed = openai_client.fine_tuning.jobs.retrieve(job.id)
    assert (failed.error.code, failed.error.message, failed.error.param) == (  # type: ignore[union-attr]
        ("out_of_memory", "Out of memory. Use less.", None)
    )
    assert failed.trained_tokens == 99


def test_a_running_job_says_when_it_will_be_done(
    openai_client: openai.OpenAI, database: Database, file_id: str
) -> None:
    job = create(openai_client, file_id)
    with database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
        assert lease is not None
        queue.record(session, lease, [], queue.Progress(step=1, eta_seconds=500))
    running = openai_client.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish - running.created_at >= 500  # type: ignore[operator]


def test_a_retried_create_makes_no_second_job(openai_client: openai.OpenAI, file_id: str) -> None:
    first = create(openai_client, file_id)
    retried = create(openai_client, file_id, extra_headers={"x-stainless-retry-count": "1"})
    assert retried.id == first.id
    again = create(openai_client, file_id)
    assert again.id != first.id
    assert len(list(openai_client.fine_tuning.jobs.list())) == 2


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
    monkeypatch.setattr(jobs, "find_page", None)
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
        told = [
            delivery.event_type
            for delivery in deliveries.find_page(session, webhook_id, after=None, limit=9)[0]
        ]
    assert told == ["fine_tuning.job.failed"]


def test_the_file_of_a_paused_job_is_kept(
    openai_client: openai.OpenAI, database: Database, file_id: str
) -> None:
    job = create(openai_client, file_id)
    openai_client.fine_tuning.jobs.pause(job.id)
    with pytest.raises(openai.ConflictError) as caught:
        openai_client.files.delete(file_id)
    assert caught.value.code == "file_in_use"
    with database.transaction() as session:
        jobs.request_cancel(session, job.id)
    assert openai_client.files.delete(file_id).deleted


def test_a_checkpoint_is_no_finished_adapter_of_its_job(
    live: httpx.Client, openai_client: openai.OpenAI, database: Database
) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        make_adapter(session, id="ad_1", name="helper:ckpt-step-5", job_id=job_id, step=5)
    assert live.get(f"/jobs/{job_id}").json()["adapter"] is None
    listed = {adapter["id"]: adapter["step"] for adapter in live.get("/adapters").json()["data"]}
    assert listed["ad_1"] == 5
    assert openai_client.models.retrieve("helper:ckpt-step-5").id == "helper:ckpt-step-5"
