"""Evals, runs and output items as the official client makes and reads them; the tests play the worker."""

import json
from typing import Any

import httpx
import openai
import pytest

from app.core.evaluations.answers import Answer, AnswerError, StoredGrade
from app.core.evaluations.queue import EvaluationQueue, RecordedAnswer
from app.core.storage import tables
from app.core.storage.database import Database

SCHEMA = {
    "type": "object",
    "properties": {"country": {"type": "string"}, "capital": {"type": "string"}},
    "required": ["capital"],
}
NAMES_IT = {
    "type": "string_check",
    "name": "names it",
    "input": "{{sample.output_text}}",
    "reference": "{{item.capital}}",
    "operation": "ilike",
}
ROWS = [{"item": {"country": "Norway", "capital": "Oslo"}}, {"item": {"country": "Peru", "capital": "Lima"}}]
TEMPLATE = {
    "type": "template",
    "template": [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "input_text", "text": "Capital of {{item.country}}?"}]},
    ],
}


def create(client: openai.OpenAI, **options: Any) -> Any:
    config = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    given = {"name": "capitals", "data_source_config": config, "testing_criteria": [NAMES_IT], **options}
    return client.evals.create(**given)


def completions(**options: Any) -> Any:
    return {
        "type": "completions",
        "model": "helper",
        "source": {"type": "file_content", "content": ROWS},
        "input_messages": TEMPLATE,
        **options,
    }


def run(client: openai.OpenAI, eval_id: str, source: Any = None, **options: Any) -> Any:
    return client.evals.runs.create(eval_id, data_source=source or completions(), **options)


def answer(database: Database, run_id: str, *texts: str, ends: bool = True) -> None:
    """Record answers and grades as a worker does. An empty text is an error."""
    queue = EvaluationQueue()
    with database.transaction() as session:
        lease = queue.claim(session, lease_seconds=60, max_attempts=3)
        assert lease is not None
        assert lease.evaluation_id == run_id
        for number, text in enumerate(texts):
            passed = text in ("Oslo", "Lima")
            error = None if text else AnswerError(code="prompt_too_long", message="Too long.")
            grade = StoredGrade(score=float(passed) if text else None, passed=passed if text else None)
            found = Answer(text=text, finish_reason="stop", prompt_tokens=7, completion_tokens=2, error=error)
            queue.record(session, lease, answers=[RecordedAnswer(number, 0, found, [grade])])
        if ends:
            queue.finish(session, lease, {})


def test_an_eval_is_created_shown_changed_and_deleted(openai_client: openai.OpenAI) -> None:
    made = create(openai_client, metadata={"team": "a"})
    shown = openai_client.evals.retrieve(made.id)
    assert shown.model_dump() == made.model_dump()
    assert (made.object, made.name, made.metadata) == ("eval", "capitals", {"team": "a"})
    assert made.data_source_config.schema_["properties"]["item"] == SCHEMA
    assert made.testing_criteria[0].model_dump(exclude_unset=True) == NAMES_IT
    changed = openai_client.evals.update(made.id, name="cities", metadata={})
    assert (changed.name, changed.metadata) == ("cities", {})
    gone = openai_client.evals.delete(made.id)
    assert (gone.deleted, gone.eval_id, gone.object) == (True, made.id, "eval.deleted")
    with pytest.raises(openai.NotFoundError):
        openai_client.evals.retrieve(made.id)


def test_evals_are_listed_in_pages(openai_client: openai.OpenAI) -> None:
    made = [create(openai_client, name=f"eval {number}").id for number in range(3)]
    assert [one.id for one in openai_client.evals.list(limit=2)] == made
    assert [one.id for one in openai_client.evals.list(order="desc", limit=1)] == made[::-1]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"data_source_config": {"type": "logs"}}, "custom"),
        ({"data_source_config": {"type": "custom", "item_schema": {"type": "x"}}}, "no JSON schema"),
        ({"testing_criteria": []}, "testing_criteria"),
        ({"testing_criteria": [{**NAMES_IT, "reference": "{{capital}}"}]}, "must begin with `item.`"),
        (
            {"testing_criteria": [{"type": "python", "name": "p", "source": "def grade(s, i): return 1"}]},
            "PYTHON",
        ),
    ],
)
def test_an_eval_that_can_not_run_is_refused(
    openai_client: openai.OpenAI, options: Any, problem: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=problem):
        create(openai_client, **options)


def test_a_run_is_a_native_evaluation_of_the_rendered_rows(
    openai_client: openai.OpenAI, database: Database, live: httpx.Client
) -> None:
    made = create(openai_client)
    sampling = {"temperature": 0.5, "max_completion_tokens": 9, "top_p": 0.9, "seed": 4}
    started = run(openai_client, made.id, completions(sampling_params=sampling), name="first")
    assert (started.status, started.model, started.eval_id) == ("queued", "helper", made.id)
    assert started.report_url.endswith(f"#/evaluation/{started.id}")
    native = live.get(f"/evaluations/{started.id}").json()
    assert (native["name"], native["rows"]) == ("first", 2)
    with database.snapshot() as session:
        rows = session.query(tables.EvaluationItemRow).order_by(tables.EvaluationItemRow.number).all()
        spec = session.get_one(tables.EvaluationRow, started.id).spec
    assert [message["content"] for message in rows[1].prompt["messages"]] == ["Be short.", "Capital of Peru?"]
    assert spec["sampling"]["max_new_tokens"] == 9
    assert (spec["sampling"]["temperature"], spec["sampling"]["top_p"], spec["sampling"]["seed"]) == (
        0.5,
        0.9,
        4,
    )


def test_counts_items_and_usage_are_read(openai_client: openai.OpenAI, database: Database) -> None:
    made = create(openai_client)
    rows = [*ROWS, {"item": {"country": "Chad", "capital": "N'Djamena"}}]
    source = completions(source={"type": "file_content", "content": rows})
    started = run(openai_client, made.id, source)
    answer(database, started.id, "Oslo", "Cusco", "")
    found = openai_client.evals.runs.retrieve(started.id, eval_id=made.id)
    counts = found.result_counts
    assert found.status == "completed"
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (3, 1, 1, 1)
    (criterion,) = found.per_testing_criteria_results
    assert (criterion.testing_criteria, criterion.passed, criterion.failed) == ("names it", 1, 1)
    (usage,) = found.per_model_usage
    assert (usage.run_model_name, usage.invocation_count, usage.total_tokens) == ("helper", 2, 18)
    items = list(openai_client.evals.runs.output_items.list(started.id, eval_id=made.id, limit=1))
    assert [item.status for item in items] == ["pass", "fail", "error"]
    assert [item.datasource_item["country"] for item in items] == ["Norway", "Peru", "Chad"]
    first = items[0]
    assert (first.results[0].name, first.results[0].passed, first.results[0].score) == ("names it", True, 1)
    assert (first.sample.input[1].content, first.sample.output[0].content) == ("Capital of Norway?", "Oslo")
    assert items[2].sample.error.code == "prompt_too_long"
    one = openai_client.evals.runs.output_items.retrieve(items[1].id, eval_id=made.id, run_id=started.id)
    assert one.model_dump() == items[1].model_dump()
    listed = openai_client.evals.runs.output_items.list
    assert [item.id for item in listed(started.id, eval_id=made.id, status="fail")] == [items[1].id]
    newest = listed(started.id, eval_id=made.id, order="desc", limit=2)
    assert [item.id for item in newest] == [item.id for item in items[::-1]]


def test_runs_are_listed_cancelled_and_deleted(openai_client: openai.OpenAI, database: Database) -> None:
    made, other = create(openai_client), create(openai_client)
    first, second = run(openai_client, made.id), run(openai_client, made.id)
    answer(database, first.id, "Oslo", ends=False)
    cancelled = openai_client.evals.runs.cancel(second.id, eval_id=made.id)
    assert cancelled.status == "canceled"
    assert [one.id for one in openai_client.evals.runs.list(made.id, limit=1)] == [first.id, second.id]
    assert [one.id for one in openai_client.evals.runs.list(made.id, status="in_progress")] == [first.id]
    with pytest.raises(openai.NotFoundError):
        openai_client.evals.runs.retrieve(first.id, eval_id=other.id)
    gone = openai_client.evals.runs.delete(first.id, eval_id=made.id)
    assert (gone.deleted, gone.run_id) == (True, first.id)
    openai_client.evals.delete(made.id)
    with database.snapshot() as session:
        assert session.query(tables.EvaluationRow).count() == 0


def test_answers_that_are_there_are_graded_without_a_model(
    openai_client: openai.OpenAI, database: Database, live: httpx.Client
) -> None:
    made = create(openai_client)
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    content = [
        {"item": {"capital": "Oslo"}, "sample": {"output_text": "Oslo!"}},
        {"item": {"capital": "Lima"}, "sample": {"output_tools": calls}},
        {"item": {"capital": "Rome"}},
    ]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    started = run(openai_client, made.id, source)
    with database.snapshot() as session:
        stored = session.query(tables.EvaluationAnswerRow).order_by(tables.EvaluationAnswerRow.number).all()
    assert started.model == ""
    assert [row.answer["text"] for row in stored] == ["Oslo!", "", ""]
    assert stored[1].answer["tool_calls"] == [{"id": "c", "name": "f", "arguments": "{}"}]
    assert {row.grades for row in stored} == {None}
    assert live.get(f"/evaluations/{started.id}").json()["spec"]["models"][0]["label"] == "given answers"
    assert live.get(f"/evaluations/{started.id}/rows").json()["data"][0]["item"] == {"capital": "Oslo"}


def test_rows_may_be_those_of_a_file(openai_client: openai.OpenAI, database: Database) -> None:
    content = "\n".join(json.dumps(row) for row in ROWS).encode()
    file = openai_client.files.create(file=("rows.jsonl", content), purpose="evals")
    assert (file.purpose, file.status, file.bytes) == ("evals", "processed", len(content))
    assert [one.id for one in openai_client.files.list(purpose="evals")] == [file.id]
    assert list(openai_client.files.list(purpose="fine-tune")) == []
    made = create(openai_client)
    started = run(openai_client, made.id, completions(source={"type": "file_id", "id": file.id}))
    with database.snapshot() as session:
        assert session.get_one(tables.EvaluationRow, started.id).rows == 2


def test_functions_of_a_run_are_offered_and_not_part_of_its_rows(
    openai_client: openai.OpenAI, database: Database
) -> None:
    made = create(openai_client)
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    started = run(openai_client, made.id, completions(sampling_params={"tools": [tool]}))
    answer(database, started.id, "Oslo")
    (item,) = openai_client.evals.runs.output_items.list(started.id, eval_id=made.id)
    with database.snapshot() as session:
        prompt = session.query(tables.EvaluationItemRow).first().prompt
    assert prompt["tools"][0]["name"] == "find"
    assert item.datasource_item == ROWS[0]["item"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"source": {"type": "file_content", "content": [{"item": {}}]}}, "Row 0 does not fit.*capital"),
        ({"source": {"type": "stored_completions"}}, "stored_completions"),
        ({"source": {"type": "file_id", "id": "ds_missing"}}, "no file 'ds_missing'"),
        ({"model": "nobody"}, "nobody"),
        ({"input_messages": {"type": "item_reference", "item_reference": "item.turns"}}, "no 'turns'"),
        ({"sampling_params": {"response_format": {"type": "json_object"}}}, "only text is supported"),
    ],
)
def test_a_run_that_can_not_start_is_refused(
    openai_client: openai.OpenAI, changes: Any, problem: str
) -> None:
    made = create(openai_client)
    with pytest.raises(openai.APIStatusError, match=problem) as caught:
        run(openai_client, made.id, completions(**changes))
    assert caught.value.status_code in (400, 404)
    assert list(openai_client.evals.runs.list(made.id)) == []
