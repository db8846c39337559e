"""Rows and files for tests, with defaults for everything that a test does not care about."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.core import dataset_records, jobs, tables, webhooks
from app.core.artifacts import ArtifactStore
from app.core.dataset_limits import Limits
from app.core.specs import JobSpec
from app.core.webhooks import EventType

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


def make_job(session: Session, *, now: datetime | None = None, **fields: Any) -> tables.Job:
    return jobs.submit(session, make_spec(**fields), max_queued=10_000, now=now)


def make_webhook(session: Session, *, is_enabled: bool = True, **fields: Any) -> tables.Webhook:
    defaults = {"url": "https://example.org/hooks", "event_types": list(EventType), "name": ""}
    webhook = webhooks.create(session, **{**defaults, **fields})
    return webhooks.change(session, webhook.id, is_enabled=is_enabled)


def make_dataset(
    session: Session, store: ArtifactStore, folder: Path, rows: Iterable[object] = (CHAT_ROW,)
) -> tables.Dataset:
    path = folder / "rows.jsonl"
    path.write_bytes(jsonl(rows))
    dataset = dataset_records.store_upload(store, path, name="rows.jsonl", limits=Limits())
    session.add(dataset)
    session.flush()
    return dataset


def make_adapter(session: Session, **fields: Any) -> tables.Adapter:
    defaults: dict[str, Any] = {
        "id": "ad_0000000000000000",
        "name": "helper",
        "base_model": "owner/model",
        "quantization": make_spec().quantization.model_dump(mode="json"),
        "size_bytes": 1,
        "artifact": "adapters/ad_0000000000000000",
        "created_at": datetime.now(UTC),
    }
    adapter = tables.Adapter(**{**defaults, **fields})
    session.add(adapter)
    session.flush()
    return adapter
