"""Makes fine-tuning jobs through the official client, and ends them as a worker does."""

from typing import Any

import openai

from app.core.adapters import records as adapter_records
from app.core.jobs import queue
from app.core.jobs.queue import JobLease
from app.core.storage.database import Database
from tests.factories import CHAT_ROW, jsonl


def upload(client: openai.OpenAI, rows: int) -> str:
    return client.files.create(file=("rows.jsonl", jsonl([CHAT_ROW] * rows)), purpose="fine-tune").id


def upload_preferences(client: openai.OpenAI, rows: int) -> str:
    """A file in OpenAI's form of preferences."""
    row = {
        "input": {"messages": [{"role": "user", "content": "Hi"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "Good day."}],
        "non_preferred_output": [{"role": "assistant", "content": "What?"}],
    }
    return client.files.create(file=("pairs.jsonl", jsonl([row] * rows)), purpose="fine-tune").id


def create(client: openai.OpenAI, file_id: str, **options: Any) -> Any:
    return client.fine_tuning.jobs.create(**{"model": "owner/model", "training_file": file_id, **options})


def claim(database: Database) -> JobLease:
    with database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
    assert lease is not None
    return lease


def finish(database: Database, lease: JobLease, *, checkpoints: tuple[int, ...] = ()) -> None:
    with database.transaction() as session:
        for step in (*checkpoints, None):
            make_ids = (
                adapter_records.name_artifact(lease.job_id, lease.attempt)
                if step is None
                else adapter_records.name_checkpoint_artifact(lease.job_id, step)
            )
            adapter = adapter_records.add(
                session,
                make_ids[0],
                spec=lease.spec,
                job_id=lease.job_id,
                artifact=make_ids[1],
                size_bytes=1,
                step=step,
            )
        queue.succeed(session, lease, adapter_name=adapter.name)


def supervised(hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def dpo(hyperparameters: Any) -> Any:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}
