"""Responses as rows of the database, and rows as responses."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from app.api.openai.responses.items import Item, item_adapter
from app.api.openai.responses.plan import ResponsePlan
from app.api.openai.responses.response import ResponseObject
from app.core.storage import tables


def new_row(
    plan: ResponsePlan, response: ResponseObject, *, hours: float, alive_until: datetime | None = None
) -> tables.ResponseRow:
    """A row for the response, which expires after these hours."""
    items = stored_items(plan, response)
    created_at = datetime.fromtimestamp(plan.created_at, UTC)
    return tables.ResponseRow(
        id=plan.id,
        previous_id=plan.body.previous_response_id,
        served_by=plan.target.key,
        status=response.status,
        input_count=len(plan.input_items),
        conversation_bytes=size_of(plan, items),
        created_at=created_at,
        expires_at=created_at + timedelta(hours=hours),
        alive_until=alive_until,
        content=stored_content(response),
        items=items,
    )


def stored_items(plan: ResponsePlan, response: ResponseObject) -> list[dict[str, Any]]:
    """The items of input and output, as they are stored."""
    return [_dump(item) for item in (*plan.input_items, *response.output)]


def stored_content(response: ResponseObject) -> dict[str, Any]:
    """What is stored of a response besides its items and its status."""
    return response.model_dump(mode="json", exclude={"output", "status"})


def size_of(plan: ResponsePlan, items: list[dict[str, Any]]) -> int:
    """The size in bytes of these items, and of the conversation before them."""
    return plan.earlier_bytes + len(json.dumps(items))


def read_row(row: tables.ResponseRow) -> ResponseObject:
    """The response of a row."""
    output = [item_adapter.validate_python(item) for item in row.items[row.input_count :]]
    return ResponseObject(**row.content, status=row.status, output=output)


def _dump(item: Item) -> dict[str, Any]:
    return item.model_dump(mode="json", exclude_none=True)
