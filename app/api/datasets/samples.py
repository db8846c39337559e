"""POST /datasets/inspect: the first records of a file, what its columns may mean, and how they are read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import TypeAdapter, ValidationError

from app.api.deps import ServicesDep
from app.api.http.bodies.uploads import spooled
from app.api.http.errors import documented
from app.api.schemas import DatasetSampleRead
from app.core.datasets.column_maps.samples import take_sample
from app.core.datasets.formats import AmbiguousColumns, UnknownColumns
from app.core.datasets.limits import Limits
from app.core.errors import InvalidRequest
from app.core.errors.datasets import DatasetInvalid, FieldsUnused

router = APIRouter(prefix="/datasets", tags=["Datasets"])


@router.post("/inspect", summary="Inspect a file of rows", responses=documented(413))
def inspect_file(
    file: Annotated[UploadFile, File(description="The file, or only its first lines. It is not stored.")],
    services: ServicesDep,
    column_map: Annotated[
        str | None,
        Form(
            description='Your columns for those of a format: `{"prompt": "question"}`. Left out: the file\'s '
            "own columns, or else the likeliest guess. `{}`: its own columns only."
        ),
    ] = None,
) -> DatasetSampleRead:
    """Show the first records of a file and how they would be read, without storing anything.

    `error` says why `POST /datasets` would refuse these records with this `column_map`.

    `curl -F file=@rows.csv localhost:8000/datasets/inspect`
    """
    mapped = None if column_map is None else parse_column_map(column_map)
    with spooled(services.scratch, file.file) as path:
        sample = take_sample(path, limits=Limits.from_settings(services.settings), column_map=mapped)
    return DatasetSampleRead.from_sample(sample)


@contextmanager
def samples_in_errors(path: Path, limits: Limits, column_map: Mapping[str, str]) -> Iterator[None]:
    """Add the file's first records to errors that a column map, or leaving fields out, would mend."""
    try:
        yield
    except (UnknownColumns, AmbiguousColumns, FieldsUnused) as error:
        with suppress(DatasetInvalid):
            sample = take_sample(path, limits=limits, column_map=column_map or None)
            error.sample = DatasetSampleRead.from_sample(sample).model_dump(mode="json")
        raise


def parse_column_map(text: str | None) -> dict[str, str]:
    """Returns the column map of a form. Raises InvalidRequest where it is no JSON object of text."""
    if not text:
        return {}
    try:
        return TypeAdapter(dict[str, str]).validate_json(text)
    except ValidationError:
        raise InvalidRequest(
            "column_map must be a JSON object of text.",
            param="column_map",
            hint='For example {"prompt": "question", "completion": "answer"}.',
        ) from None
