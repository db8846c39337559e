"""Reads exported files: OpenAI's objects, alone, in lists or in pages, and files of rows. Asks no API."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.cli.failures import UsageProblem
from app.cli.openai_imports.objects import OpenAIEval, OpenAIEvalRun, OpenAIFile, OpenAIJob

GRADER_TYPES = ("string_check", "text_similarity", "score_model", "label_model", "python", "multi")
_SUFFIXES = (".json", ".jsonl")


class RowKind(StrEnum):
    """What the rows of a file are for."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    PREFERENCES = "preferences"
    REINFORCEMENT = "reinforcement"
    ITEMS = "items"


@dataclass(frozen=True)
class RowFile:
    """A file of rows, one JSON object a line. `images`: how many rows have pictures or sound."""

    path: Path
    kind: RowKind
    rows: int
    images: int = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows in order."""
        with self.path.open(encoding="utf-8-sig") as lines:
            yield from (json.loads(line) for line in lines if line.strip())


@dataclass(frozen=True)
class LeftOut:
    """Something that has no counterpart, or can't be used, and why."""

    what: str
    reason: str


@dataclass
class Export:
    """Everything that was found. `names`: the names of files by OpenAI's ids."""

    rows: list[RowFile] = field(default_factory=list)
    jobs: list[OpenAIJob] = field(default_factory=list)
    evals: list[OpenAIEval] = field(default_factory=list)
    runs: list[OpenAIEvalRun] = field(default_factory=list)
    graders: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    def find_rows(self, file_id: str, given: Mapping[str, Path]) -> RowFile | None:
        """The file that OpenAI knew by an id: as `--file` says, named after the id, or after its own name."""
        if file_id in given:
            return next((one for one in self.rows if one.path == given[file_id]), None)
        by_id = [one for one in self.rows if file_id in one.path.name]
        own = [one for one in self.rows if one.path.name == self.names.get(file_id)]
        return next(iter(by_id or own), None)


def read_export(paths: Sequence[Path]) -> Export:
    """Read files, and all JSON files below folders. Raises UsageProblem where one can't be read."""
    export = Export()
    for path in dict.fromkeys(chain.from_iterable(map(_files, paths))):
        try:
            _read(path, export)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageProblem(f"{path} can't be read: {reason}.") from None
    return export


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(one for one in path.rglob("*") if one.suffix in _SUFFIXES and one.is_file())
    if not path.exists():
        raise UsageProblem(f"There is no file {path}.")
    return [path]


def _read(path: Path, export: Export) -> None:
    text = path.read_text(encoding="utf-8-sig")
    try:
        records = _records(text)
    except ValueError as error:
        return export.left_out.append(LeftOut(str(path), f"it is not JSON: {error}"))
    if not records:
        return export.left_out.append(LeftOut(str(path), "it is empty"))
    if not all(isinstance(record, dict) for record in records):
        return export.left_out.append(LeftOut(str(path), "it holds values that are not JSON objects"))
    kind = _row_kind(records[0])
    if kind is not None:
        images = sum(_has_images(record) for record in records)
        return export.rows.append(RowFile(path, kind, len(records), images))
    for record in records:
        _add(path, record, export)
    return None


def _records(text: str) -> list[Any]:
    """The objects of a file: one, a list, the page of a list, or one a line."""
    try:
        whole = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(whole, dict) and whole.get("object") == "list" and isinstance(whole.get("data"), list):
        return list(whole["data"])
    return whole if isinstance(whole, list) else [whole]


def _row_kind(record: Mapping[str, Any]) -> RowKind | None:
    if {"input", "preferred_output", "non_preferred_output"} <= record.keys():
        return RowKind.PREFERENCES
    messages = record.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        is_answered = messages[-1].get("role") == "assistant"
        return RowKind.CHAT if is_answered else RowKind.REINFORCEMENT
    if {"prompt", "completion"} <= record.keys():
        return RowKind.COMPLETIONS
    return RowKind.ITEMS if isinstance(record.get("item"), dict) else None


def _has_images(row: object) -> bool:
    if isinstance(row, dict):
        return row.get("type") in ("image_url", "input_image", "input_audio") or any(
            map(_has_images, row.values())
        )
    return isinstance(row, list) and any(map(_has_images, row))


def _add(path: Path, record: dict[str, Any], export: Export) -> None:
    kind = record.get("object")
    try:
        if kind == "fine_tuning.job" or {"model", "training_file"} <= record.keys():
            export.jobs.append(OpenAIJob.model_validate(record))
        elif kind == "eval" or {"data_source_config", "testing_criteria"} <= record.keys():
            export.evals.append(OpenAIEval.model_validate(record))
        elif kind == "eval.run" or "data_source" in record:
            export.runs.append(OpenAIEvalRun.model_validate(record))
        elif kind == "file":
            export.names[str(record.get("id"))] = OpenAIFile.model_validate(record).filename
        elif isinstance(record.get("grader"), dict):
            export.graders.append(record["grader"])
        elif record.get("type") in GRADER_TYPES:
            export.graders.append(record)
        else:
            export.left_out.append(LeftOut(f"{path}: {_name(record)}", _reason(record)))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        export.left_out.append(LeftOut(f"{path}: {_name(record)}", f"{place}: {problem['msg']}"))


def _name(record: Mapping[str, Any]) -> str:
    found = (record.get(name) for name in ("id", "name", "custom_id", "object"))
    return str(next((one for one in found if one), "an object"))


_REASONS = {
    "fine_tuning.job.checkpoint": "the weights of checkpoints stay with OpenAI",
    "fine_tuning.job.event": "events are a log; a new job writes its own",
    "eval.run.output_item": "results of a run; a new evaluation makes its own",
    "model": "the weights of fine-tuned models stay with OpenAI; their jobs can be repeated",
}


def _reason(record: Mapping[str, Any]) -> str:
    if {"custom_id", "method", "url"} <= record.keys():
        return "a request of the Batch API, which is neither learned from nor evaluated on"
    known = _REASONS.get(str(record.get("object")))
    return known or "it is no training row, job, eval, run of an eval, grader or file of OpenAI's"


def given_files(pairs: Iterable[str]) -> dict[str, Path]:
    """`--file ID=PATH` as a mapping. Raises UsageProblem."""
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise UsageProblem(
                f"--file {pair} is not of the form ID=PATH.", hint="--file file-abc=rows.jsonl"
            )
        found[name] = Path(path)
    return found


def plain_name(text: str) -> str:
    """A text of letters, digits, `.`, `_` and `-`, as names of files and suffixes are."""
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in text)
    return plain.lstrip(".")[:64]
