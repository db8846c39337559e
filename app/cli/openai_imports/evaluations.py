"""OpenAI's evals with their runs, and the graders of reinforcement jobs, as evaluations. Pure.

An eval says what is graded, one of its runs what the models are asked and on which rows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from app.cli.openai_imports.files import GRADER_TYPES, Export, LeftOut, RowFile, RowKind, plain_name
from app.cli.openai_imports.objects import OpenAIEval, OpenAIEvalRun, OpenAIJob

MAX_ROWS = 10_000
_UNSUPPORTED_METRICS = ("cosine", "meteor")
_GRADER_FIELDS = (
    "type", "name", "input", "reference", "operation", "evaluation_metric", "pass_threshold", "model",
    "range", "sampling_params", "labels", "passing_labels", "source", "image_tag", "graders",
    "calculate_output",
)  # fmt: skip
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_completion_tokens": "max_new_tokens",
    "max_completions_tokens": "max_new_tokens",
}

FindRows = Callable[[str], RowFile | None]


@dataclass(frozen=True)
class EvaluationDraft:
    """The body of `POST /evaluations`, and what to know of it."""

    name: str
    source: str
    body: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    file: RowFile | None = None


@dataclass
class _Known:
    """What is known of an evaluation so far. `file`: where its rows are from."""

    rows: list[dict[str, Any]]
    file: RowFile | None = None
    asked: Any = None
    sampling: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_eval(
    found: OpenAIEval, export: Export, find_rows: FindRows, *, base_model: str, judge: str | None
) -> EvaluationDraft | LeftOut:
    """An eval as an evaluation of the base model, on the rows of its newest run that can be used."""
    runs = sorted((run for run in export.runs if run.eval_id == found.id), key=lambda run: -run.created_at)
    reasons: list[str] = []
    draft = None
    for run in runs:
        draft = _of_run(run, find_rows, reasons)
        if draft:
            break
    draft = draft or _without_run(found, export, reasons)
    if draft is None:
        return LeftOut(f"the eval {found.title}", "; ".join(dict.fromkeys(reasons)))
    graders = _graders(found.testing_criteria, judge, draft.notes)
    if not graders:
        return LeftOut(
            f"the eval {found.title}", f"none of its graders can be used: {'; '.join(draft.notes)}"
        )
    return _finish(found.title, found.id or found.title, draft, graders, base_model)


def plan_reinforcement(
    job: OpenAIJob, rows: RowFile | None, *, base_model: str, judge: str | None
) -> EvaluationDraft | LeftOut:
    """The grader of a reinforcement job as an evaluation on the job's rows."""
    grader = job.method.settings.grader if job.method else None
    what = f"the grader of {job.name}"
    if grader is None or rows is None:
        return LeftOut(what, "the job has no grader" if grader is None else missing(job.training_file))
    draft = _Known(_items(islice(rows.read(), MAX_ROWS)), rows, notes=_cut_note(rows.rows))
    graders = _graders([grader], judge, draft.notes)
    if not graders:
        return LeftOut(what, "; ".join(draft.notes))
    return _finish(f"{job.own_suffix or job.id} grader", job.name, draft, graders, base_model)


def clean_grader(grader: Mapping[str, Any], judge: str | None, notes: list[str]) -> dict[str, Any] | None:
    """A grader without fields that only OpenAI knows; None, and a note, where it has no counterpart."""
    name = grader.get("name") or grader.get("type")
    if grader.get("type") not in GRADER_TYPES:
        notes.append(f"The grader {name} is left out: its type, {grader.get('type')}, has no counterpart.")
        return None
    if grader.get("evaluation_metric") in _UNSUPPORTED_METRICS:
        notes.append(
            f"The grader {name} is left out: {grader['evaluation_metric']} is not measured here; "
            "fuzzy_match, bleu, gleu and rouge are."
        )
        return None
    kept = {key: grader[key] for key in _GRADER_FIELDS if grader.get(key) is not None}
    if "graders" in kept:
        kept["graders"] = _parts(kept["graders"], judge, notes)
    if kept["type"] in ("score_model", "label_model"):
        if judge:
            kept["model"] = judge
        else:
            notes.append(
                f"The grader {name} asks {kept.get('model')}: --judge names another model, or "
                "TUNESMITH_JUDGE_URL the endpoint that has it."
            )
    if kept["type"] == "python":
        notes.append(f"The grader {name} is Python, which the server runs only where that is allowed.")
    return kept


def _parts(graders: Any, judge: str | None, notes: list[str]) -> Any:
    """The graders of a `multi` grader: by name, in a list, or one."""
    if isinstance(graders, list):
        return [kept for one in graders if (kept := clean_grader(one, judge, notes))]
    if "type" in graders and isinstance(graders["type"], str):
        return clean_grader(graders, judge, notes)
    return {name: kept for name, one in graders.items() if (kept := clean_grader(one, judge, notes))}


def _graders(criteria: list[dict[str, Any]], judge: str | None, notes: list[str]) -> list[dict[str, Any]]:
    return [kept for one in criteria if (kept := clean_grader(one, judge, notes))]


def _of_run(run: OpenAIEvalRun, find_rows: FindRows, reasons: list[str]) -> _Known | None:
    """Rows, prompt and sampling of a run; None, and a reason, where it can't be repeated."""
    data = run.data_source
    if data.type not in ("completions", "responses"):
        reasons.append(f"run {run.id} grades answers that are there already ({data.type}); no model is asked")
        return None
    if data.source.type == "file_content":
        file = None
        records, count = data.source.content or [], len(data.source.content or [])
    elif data.source.type == "file_id" and data.source.id:
        file = find_rows(data.source.id)
        if file is None:
            reasons.append(f"run {run.id}: {missing(data.source.id)}")
            return None
        records, count = list(islice(file.read(), MAX_ROWS)), file.rows
    else:
        reasons.append(f"run {run.id} reads what OpenAI stores ({data.source.type})")
        return None
    draft = _Known(_items(records[:MAX_ROWS]), file, _input(data.input_messages), notes=_cut_note(count))
    for key, value in (data.sampling_params or {}).items():
        if key in _SAMPLING:
            draft.sampling[_SAMPLING[key]] = value
        elif value is not None:
            draft.notes.append(f"sampling_params.{key} of run {run.id} has no counterpart.")
    return draft


def _without_run(found: OpenAIEval, export: Export, reasons: list[str]) -> _Known | None:
    """The only file of items, where the rows say themselves what a model is asked."""
    source = found.data_source_config
    if source.type != "custom":
        reasons.append(f"its rows are what OpenAI stores ({source.type})")
        return None
    files = [file for file in export.rows if file.kind is RowKind.ITEMS]
    rows = _items(islice(files[0].read(), MAX_ROWS)) if len(files) == 1 else []
    if rows and all(isinstance(row.get("messages"), list) or "prompt" in row for row in rows):
        return _Known(rows, files[0], notes=_cut_note(files[0].rows))
    reasons.append(
        "no run of it is among the files that says on which rows and what a model is asked: export "
        "`GET /v1/evals/{id}/runs` too"
    )
    return None


def _items(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    items = (record["item"] if isinstance(record.get("item"), dict) else record for record in records)
    return [
        {**item, "messages": list(map(_message, item["messages"]))}
        if isinstance(item.get("messages"), list)
        else item
        for item in items
    ]


def _message(message: Any) -> Any:
    """A message; OpenAI's role `developer` is `system` for chat templates."""
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _input(messages: Mapping[str, Any] | None) -> Any:
    if not messages:
        return None
    if messages.get("type") == "item_reference":
        return messages.get("item_reference")
    return [{key: one[key] for key in ("role", "content")} for one in messages.get("template") or []]


def _finish(
    title: str, source: str, draft: _Known, graders: list[dict[str, Any]], base_model: str
) -> EvaluationDraft:
    optional = {"input": draft.asked, "sampling": draft.sampling}
    body = {
        "name": title[:255],
        "models": [base_model],
        "graders": graders,
        **{key: value for key, value in optional.items() if value},
        "rows": draft.rows,
    }
    draft.notes.append(
        f"It asks {base_model}. Once a job has ended, `tunesmith evaluations create FILE -m {base_model} "
        "-m ADAPTER` asks its adapter too."
    )
    return EvaluationDraft(plain_name(source) or "evaluation", title, body, draft.notes, draft.file)


def _cut_note(rows: int) -> list[str]:
    return [f"Of {rows:,} rows, the first {MAX_ROWS:,} are taken."] if rows > MAX_ROWS else []


def missing(file_id: str) -> str:
    """Why something can't be made whose file was not found."""
    return f"its file {file_id} is not among the files: name it after its id, or give --file {file_id}=PATH"
