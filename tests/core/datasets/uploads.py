"""Inspects uploads for tests of datasets: from their bytes to what was found and stored."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from app.core.datasets.inspection import Inspection
from app.core.datasets.inspector import inspect
from app.core.datasets.limits import Limits
from app.core.datasets.rows import Row, read_rows

QUESTION: dict[str, Any] = {"prompt": "p", "completion": "c"}


@dataclass
class Inspected:
    found: Inspection
    rows: list[tuple[int, Row]]

    @property
    def problems(self) -> list[str]:
        return [str(problem) for problem in self.found.problems]


def inspected(upload: bytes, column_map: Mapping[str, str] | None = None, **limits: int) -> Inspected:
    with tempfile.TemporaryDirectory() as folder:
        path, stored = Path(folder) / "upload", Path(folder) / "rows.jsonl"
        path.write_bytes(upload)
        found = inspect(path, stored, limits=Limits(**limits), column_map=column_map)
        with stored.open("rb") as lines:
            return Inspected(found, list(read_rows(lines)))


def parquet(query: str, options: str = "") -> bytes:
    """The result of a query as a Parquet file."""
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        path = Path(folder) / "rows.parquet"
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet {options})")
        return path.read_bytes()
