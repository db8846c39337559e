"""What the inspection of an upload found, and whether the upload is refused for it."""

from dataclasses import dataclass, field
from enum import StrEnum

from app.core.datasets.readers.sources import Container
from app.core.datasets.rows import DatasetFormat, Problem
from app.core.datasets.unused_fields import OnUnused, UnusedField, refuse_unused
from app.core.errors.datasets import DatasetInvalid

MAX_PROBLEMS = 100
_PROBLEMS_IN_MESSAGE = 5
TABLES = (Container.PARQUET, Container.HUB)
EXPECTED = (
    '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]} or '
    '{"prompt": "…", "completion": "…"} or {"text": "…"}'
)

_EXPECTED_OF = {
    DatasetFormat.COMPARISONS: '{"prompt": "…", "chosen": "…", "rejected": "…"}, each a text or a list of '
    "messages",
    DatasetFormat.LABELLED_ANSWERS: '{"prompt": "…", "completion": "…", "label": true}, texts or lists of '
    "messages",
}


class OnProblem(StrEnum):
    """What to do with an upload in which some rows can't be used."""

    REFUSE = "refuse"
    SKIP = "skip"


@dataclass
class Upload:
    """What is recorded of the uploaded file itself."""

    container: Container
    compression: str | None
    encoding: str | None
    size_bytes: int
    sha256: str
    column_map: dict[str, str]
    delimiter: str | None = None


@dataclass
class Inspection:
    """The result of an inspection; `size_bytes` and `sha256` are those of the stored rows.

    `free_columns` are columns that the format reads and the file lacks.
    """

    upload: Upload
    format: DatasetFormat | None = None
    columns: list[str] = field(default_factory=list)
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    unused_fields: list[UnusedField] = field(default_factory=list)
    free_columns: list[str] = field(default_factory=list)
    size_bytes: int = 0
    sha256: str = ""


def refuse_problems(found: Inspection, on_problem: OnProblem = OnProblem.REFUSE) -> None:
    """Raise DatasetInvalid, with every problem and its line, where there are problems.

    With `OnProblem.SKIP` it is raised only where no usable row is left.
    """
    if not found.problem_count or (found.rows and on_problem is OnProblem.SKIP):
        return
    total = found.rows + found.problem_count
    count = f"{found.problem_count} of {total} rows" if total > 1 else "The only row"
    shown = " ".join(_in_words(problem, found) for problem in found.problems[:_PROBLEMS_IN_MESSAGE])
    unshown = found.problem_count - _PROBLEMS_IN_MESSAGE
    is_hub = found.upload.container is Container.HUB
    mend = "Mend them in the dataset's repository." if is_hub else "Mend them and upload again."
    expected = _EXPECTED_OF.get(found.format, EXPECTED) if found.format else EXPECTED
    skip = " Or leave them out: on_problem=skip." if found.rows else ""
    raise DatasetInvalid(
        f"{count} can't be used. {shown}" + (f" … and {unshown} more." if unshown > 0 else ""),
        problems=[{"line": problem.line, "message": problem.message} for problem in found.problems],
        hint=f"{mend}{skip} A row looks like {expected}.",
    )


def refuse_fields(found: Inspection, on_unused: OnUnused = OnUnused.REFUSE) -> None:
    """Raise FieldsUnused where a field that changes what is learned is not used, and that is not ignored."""
    place = "row" if found.upload.container in TABLES else "line"
    refuse_unused(found.unused_fields, found.rows, on_unused, place=place, free_columns=found.free_columns)


def _in_words(problem: Problem, found: Inspection) -> str:
    place = "Row" if found.upload.container in TABLES else "Line"
    return f"{place} {problem.line}: {problem.message}"
