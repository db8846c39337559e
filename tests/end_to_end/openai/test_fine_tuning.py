"""The published fine-tuning workflow with the official client, unmodified, against a real API and worker."""

import asyncio
import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.end_to_end.box import Box
from tests.factories import jsonl
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_for

ROWS = jsonl(
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n} is said"}]}
    for n in range(24)
)
HI: list[Any] = [{"role": "user", "content": "Say 3"}]
# Tunesmith's own settings among OpenAI's, with which the tiny model learns in a few seconds.
QUICK: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "learning_rate_multiplier": 5}
# An epoch is one step.
SLOW: dict[str, Any] = QUICK | {"n_epochs": 1000, "batch_size": 24}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    make_tiny_model(folder / "models")
    box = Box(folder, folder / "models", cancel_grace_seconds="10")
    box.environment["OMP_NUM_THREADS"] = "1"
    box.start_api()
    box.start_worker()
    yield box
    box.close()


@pytest.fixture
def url(box: Box) -> str:
    return str(box.client.base_url.join("/v1"))


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none") as client:
        yield client


def supervised(**hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def until(client: openai.OpenAI, job_id: str, is_so: Callable[[Any], bool]) -> Any:
    def look() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if is_so(job) else None

    return wait_for(look, f"job {job_id}", timeout_seconds=240)


def test_the_whole_workflow(client: openai.OpenAI, box: Box) -> None:
    file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    held_out = client.files.create(file=("held-out.jsonl", ROWS), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny-llama",
        training_file=file.id,
        validation_file=held_out.id,
        suffix="numbers",
        seed=7,
        metadata={"team": "support"},
        method=supervised(n_epochs=3, batch_size=8, **QUICK),
    )
    assert job.status == "queued"
    done = until(client, job.id, lambda job: job.status in ("succeeded", "failed"))
    assert done.status == "succeeded", done.error
    assert done.trained_tokens > 0

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
    losses = [event.data["train_loss"] for event in events if "train_loss" in (event.data or {})]
    assert len(losses) == 9
    assert losses[0] < losses[-1]

    [result] = done.result_files
    table = list(csv.DictReader(io.StringIO(client.files.content(result).text)))
    assert [row["step"] for row in table if row["kind"] == "train"] == [str(step) for step in range(1, 10)]
    assert [row["step"] for row in table if row["kind"] == "eval"] == ["3", "6", "9"]

    name = done.fine_tuned_model
    assert name == f"ft:tiny-llama:tunesmith:numbers:{job.id.removeprefix('job_')}"
    assert client.models.retrieve(name).id == name
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [one.step_number for one in checkpoints] == [9, 6, 3]
    assert all(one.metrics.full_valid_loss for one in checkpoints)
    models = [one.fine_tuned_model_checkpoint for one in checkpoints]
    for model in models:
        answer = client.chat.completions.create(
            model=model, messages=HI, max_completion_tokens=8, temperature=0
        )
        assert answer.model == model
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        assert "adapter_model.safetensors" in files_in(box, model)

    assert client.models.delete(name).deleted
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
    assert client.files.delete(file.id).deleted


def files_in(box: Box, model: str) -> set[str]:
    content = box.client.get(f"/adapters/{model}/download").content
    return {name.rpartition("/")[2] for name in zipfile.ZipFile(io.BytesIO(content)).namelist()}


@pytest.mark.slow
def test_the_async_client_pauses_a_job_asks_its_checkpoint_resumes_and_cancels(
    url: str, client: openai.OpenAI, box: Box
) -> None:
    async def workflow() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as async_client:
            file = await async_client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
            steer = async_client.fine_tuning.jobs
            job = await steer.create(model="tiny-llama", training_file=file.id, method=supervised(**SLOW))
            await asyncio.to_thread(box.wait_for_step, job.id, 4)
            await steer.pause(job.id)
            paused = await asyncio.to_thread(until, client, job.id, lambda job: job.status == "paused")
            assert paused.finished_at is None
            kept = [one async for one in steer.checkpoints.list(job.id)]
            assert len(kept) == 3
            answer = await async_client.completions.create(
                model=kept[0].fine_tuned_model_checkpoint, prompt="Say", max_tokens=4
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0
            reached = box.job(job.id)["progress"]["step"]
            await steer.resume(job.id)
            await asyncio.to_thread(box.wait_for_step, job.id, reached + 3)
            await steer.cancel(job.id)
            cancelled = await asyncio.to_thread(until, client, job.id, lambda job: job.status == "cancelled")
            assert cancelled.finished_at is not None
            said = [event.message async for event in steer.list_events(job.id, limit=100)]
            assert sum(text.startswith("Fine-tuning job paused") for text in said) == 1
            steps = [event["data"]["step"] for event in box.events(job.id, "metrics")]
            assert steps == sorted(set(steps))

    asyncio.run(workflow())


@pytest.mark.slow
def test_preferences_in_openais_form_are_learned(client: openai.OpenAI, box: Box) -> None:
    rows = jsonl(
        {
            "input": {"messages": [{"role": "user", "content": f"Say {n}"}]},
            "preferred_output": [{"role": "assistant", "content": f"{n} is said"}],
            "non_preferred_output": [{"role": "assistant", "content": f"No, never {n}"}],
        }
        for n in range(24)
    )
    file = client.files.create(file=("preferences.jsonl", rows), purpose="fine-tune")
    hyperparameters: Any = QUICK | {"beta": 0.2, "n_epochs": 2, "learning_rate_multiplier": 500}

    job = client.fine_tuning.jobs.create(
        model="tiny-llama",
        training_file=file.id,
        method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
        extra_body={"training": {"validation_split": 0.2}},
    )
    ended = until(client, job.id, lambda found: found.status in ("succeeded", "failed"))

    assert ended.status == "succeeded", ended.error
    assert ended.method.dpo.hyperparameters.beta == 0.2
    data = [event.data for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    trained = [one for one in data if "train_loss" in one]
    first, last = trained[-1], trained[0]
    assert first["train_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert last["train_reward_margin"] > first["train_reward_margin"]
    assert next(one for one in data if "valid_reward_accuracy" in one)["valid_reward_accuracy"] == 1
    chat = client.chat.completions.create(model=ended.fine_tuned_model, messages=HI, max_tokens=4)
    assert chat.choices[0].message.role == "assistant"
    imitated = client.fine_tuning.jobs.create(model="tiny-llama", training_file=file.id)
    assert (imitated.status, imitated.error and imitated.error.code) == ("failed", "invalid_file_format")
