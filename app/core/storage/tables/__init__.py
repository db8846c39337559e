"""The tables of the database, one module for each noun. Knows no operation on rows.

Every class of a table ends in `Row`. All are imported here, so that the metadata of `Table` is complete.
"""

from app.core.storage.tables.adapters import AdapterImportRow, AdapterRow
from app.core.storage.tables.aliases import AliasRow, AliasVersionRow
from app.core.storage.tables.base import CountedRow, LeasedRow, QueuedRow, Table, UtcDateTime
from app.core.storage.tables.base_models import ModelDownloadRow
from app.core.storage.tables.datasets import DatasetFetchRow, DatasetRow
from app.core.storage.tables.evaluations import (
    EvaluationAnswerRow,
    EvaluationDefinitionRow,
    EvaluationItemRow,
    EvaluationRow,
)
from app.core.storage.tables.exports import ExportRow
from app.core.storage.tables.idempotency import IdempotencyKeyRow
from app.core.storage.tables.jobs import AttemptRow, EventRow, JobMetadataRow, JobRow
from app.core.storage.tables.keys import ApiKeyRow, RequestWindowRow, UsageRow
from app.core.storage.tables.responses import ResponseRow
from app.core.storage.tables.tracking import TrackedRunRow
from app.core.storage.tables.webhooks import WebhookDeliveryRow, WebhookRow
from app.core.storage.tables.workers import WorkerRow

__all__ = [
    "AdapterImportRow",
    "AdapterRow",
    "AliasRow",
    "AliasVersionRow",
    "ApiKeyRow",
    "AttemptRow",
    "CountedRow",
    "DatasetFetchRow",
    "DatasetRow",
    "EvaluationAnswerRow",
    "EvaluationDefinitionRow",
    "EvaluationItemRow",
    "EvaluationRow",
    "EventRow",
    "ExportRow",
    "IdempotencyKeyRow",
    "JobMetadataRow",
    "JobRow",
    "LeasedRow",
    "ModelDownloadRow",
    "QueuedRow",
    "RequestWindowRow",
    "ResponseRow",
    "Table",
    "TrackedRunRow",
    "UsageRow",
    "UtcDateTime",
    "WebhookDeliveryRow",
    "WebhookRow",
    "WorkerRow",
]
