"""The rows of a run: those of the request, or of a file."""

import json
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.api.deps import Services
from app.api.openai.evals.bodies import FileContent, FileReference, SourceRow
from app.core.datasets import openai_files
from app.core.errors import InvalidRequest
from app.core.evaluations.spec import MAX_ROWS
from app.core.graders.structure import explain_value
from app.core.storage import tables

_PARAM = "data_source.source"


def read_rows(
    services: Services, source: FileContent | FileReference, schema: dict[str, Any]
) -> list[SourceRow]:
    """Returns the rows, each of which fits the eval's schema.

    Raises DatasetNotFound, and InvalidRequest for a row that does not fit.
    """
    rows = source.content if isinstance(source, FileContent) else _read_file(services, source.id)
    for number, row in enumerate(rows):
        if misfit := explain_value(row.item, schema):
            raise InvalidRequest(
                f"Row {number} does not fit the eval's `item_schema`: {misfit}.", param=_PARAM
            )
    return rows


def _read_file(services: Services, file_id: str) -> list[SourceRow]:
    with services.database.snapshot() as session:
        key = _find_original(session, file_id)
    rows: list[SourceRow] = []
    with services.store.open(key) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if len(rows) == MAX_ROWS:
                raise InvalidRequest(f"The file has more than {MAX_ROWS} rows.", param=_PARAM)
            rows.append(_read_line(number, line))
    if not rows:
        raise InvalidRequest("The file has no rows.", param=_PARAM)
    return rows


def _read_line(number: int, line: bytes) -> SourceRow:
    try:
        return SourceRow.model_validate(json.loads(line))
    except (ValueError, ValidationError, RecursionError):
        raise InvalidRequest(
            f"Line {number} is not a JSON object with an `item` and perhaps a `sample`.",
            param=_PARAM,
            hint='Each line has the form {"item": {…}}.',
        ) from None


def _find_original(session: Session, file_id: str) -> str:
    file = openai_files.get(session, file_id, param=f"{_PARAM}.id")
    if isinstance(file, tables.DatasetRow) and file.original is not None:
        return file.original
    raise InvalidRequest(
        f"The file {file_id!r} is no upload.", param=f"{_PARAM}.id", hint="Upload one with purpose `evals`."
    )
