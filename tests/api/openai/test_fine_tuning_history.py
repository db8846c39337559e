"""What a fine-tuning job has done, as the official client reads it: events, checkpoints, its end."""

import httpx
import openai
import pytest

from app.core.jobs import queue
from app.core.jobs.events import Checkpoint, Evaluation, Log, Metrics, Warn
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.api.openai.fine_tuning_jobs import claim, create, finish
from tests.factories import make_adapter, make_job


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
        queue.record(session, lease, [points[0], evaluated, *points[1:]], queue.JobProgress(step=30))
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
        queue.fail(session, lease, WorkFailure("out_of_memory", "Out of memory.", "Use less."))
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
        queue.record(session, lease, [], queue.JobProgress(step=1, eta_seconds=500))
    running = openai_client.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish - running.created_at >= 500  # type: ignore[operator]


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
