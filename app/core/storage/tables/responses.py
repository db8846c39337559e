"""Rows of the responses that POST /v1/responses made."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.storage.tables.base import Table


class ResponseRow(Table):
    """A stored response. `items` are those of its input, `input_count` of them, then those of its output.

    `previous_id` is the response that it continues, which may be deleted. `conversation_bytes` is the size of
    the items of both, and of all before. `content` is what the API returns of it, without the output.
    `served_by` is what served it where the request named an alias: an adapter's id, or a base model.
    `alive_until` is the end of the lease of the API process that generates it in the background; else null.
    """

    __tablename__ = "responses"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    previous_id: Mapped[str | None] = mapped_column(String(32), index=True)
    served_by: Mapped[str | None] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16))
    input_count: Mapped[int]
    conversation_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    alive_until: Mapped[datetime | None] = mapped_column(index=True)
    content: Mapped[dict[str, Any]]
    items: Mapped[list[Any]]
