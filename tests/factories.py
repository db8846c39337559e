"""Factories of rows and files for tests, with defaults for all fields that a test does not set."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.core.datasets import records as dataset_records
from app.core.datasets.limits import Limits
from app.core.jobs import records as job_records
from app.core.jobs.events import EvaluatedRow, FinalEvaluation
from app.core.specs.job import JobSpec
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.webhooks import subscriptions
from app.core.webhooks.subscriptions import EventType

CHAT_ROW: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "How do I cancel a job?"},
        {"role": "assistant", "content": "POST /jobs/{id}/cancel."},
    ]
}


def jsonl(rows: Iterable[object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def make_spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"base_model": "owner/model", "dataset": "ds_0000000000000000", **fields})


def make_job(session: Session, *, now: datetime | None = None, **fields: Any) -> tables.JobRow:
    return job_records.submit(session, make_spec(**fields), max_queued=10_000, now=now)


def make_webhook(session: Session, *, is_enabled: bool = True, **fields: Any) -> tables.WebhookRow:
    defaults = {"url": "https://example.org/hooks", "event_types": list(EventType), "name": ""}
    webhook = subscriptions.create(session, **{**defaults, **fields})
    return subscriptions.change(session, webhook.id, is_enabled=is_enabled)


def make_dataset(
    session: Session, store: ArtifactStore, folder: Path, rows: Iterable[object] = (CHAT_ROW,)
) -> tables.DatasetRow:
    path = folder / "rows.jsonl"
    path.write_bytes(jsonl(rows))
    dataset = dataset_records.store_upload(store, path, name="rows.jsonl", limits=Limits())
    session.add(dataset)
    session.flush()
    return dataset


def make_adapter(session: Session, **fields: Any) -> tables.AdapterRow:
    defaults: dict[str, Any] = {
        "id": "ad_0000000000000000",
        "name": "helper",
        "base_model": "owner/model",
        "quantization": make_spec().quantization.model_dump(mode="json"),
        "size_bytes": 1,
        "artifact": "adapters/ad_0000000000000000",
        "created_at": datetime.now(UTC),
    }
    adapter = tables.AdapterRow(**{**defaults, **fields})
    session.add(adapter)
    session.flush()
    return adapter


def make_final_evaluation(rows: int = 2) -> FinalEvaluation:
    """The evaluation of a job of step 4; the adapter gives the expected answers."""
    found = [
        EvaluatedRow(
            line=line,
            prompt=f"How do I cancel job {line}?",
            expected=f"Send POST {line}.",
            tokens=5,
            base_loss=3.0,
            adapter_loss=0.5,
            base_answer="I am a\x1b[2J\nmodel.",
            base_is_cut=True,
            adapter_answer=f"Send POST {line}.",
        )
        for line in range(1, rows + 1)
    ]
    return FinalEvaluation(
        step=4, epoch=1.0, seconds=2.5, held_out=30, base_loss=3.0, adapter_loss=0.5, rows=found
    )
