"""Evaluations with real children and a fake engine: what is stored, asked again, and not asked again."""

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.core.engine.messages import Failed, Likelihood, Reply, TokenDelta
from app.core.evaluations import records
from app.core.evaluations.queue import evaluation_queue
from app.core.evaluations.results import EvaluationResults
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.core.evaluations.evaluations import MODELS, make_evaluation
from tests.factories import make_adapter, make_dataset
from tests.fakes import FINISHED, Act, FakeEngine
from tests.waiting import wait_for
from worker.runners.evaluations import EVALUATING_MODULE, EvaluationHandler, EvaluationRunner

Script = list[Reply | Act | str]
READ, MADE = FINISHED.usage.prompt_tokens, FINISHED.usage.completion_tokens


def says(text: str) -> Script:
    return [TokenDelta(text=text), FINISHED]


def fails(kind: str, code: str, **fields: Any) -> Script:
    return [Failed.model_validate({"kind": kind, "code": code, "message": "No.", **fields})]


@pytest.fixture
def engine(database: Database) -> Iterator[FakeEngine]:
    engine = FakeEngine()
    engine.register(database)
    yield engine
    engine.stop()


@pytest.fixture
def runner(
    settings: Settings, database: Database, store: ArtifactStore, stop: threading.Event, engine: FakeEngine
) -> EvaluationRunner:
    # One request at a time, so that the engine's scripts are used in the order of rows and models.
    settings = settings.model_copy(update={"evaluation_requests": 1})
    handler = EvaluationHandler(settings, database, store)
    return EvaluationRunner(settings, database, store, handler, stop=stop)


@pytest.fixture
def adapter(database: Database) -> str:
    with database.transaction() as session:
        return make_adapter(session).id


def submit(database: Database, adapter: str, **fields: Any) -> str:
    with database.transaction() as session:
        return make_evaluation(session, models=[MODELS[0], MODELS[1] | {"adapter": adapter}], **fields).id


def run(runner: EvaluationRunner, database: Database) -> tables.EvaluationRow:
    lease = runner.claim()
    assert lease is not None
    runner.run(lease)
    with database.snapshot() as session:
        return records.get(session, lease.evaluation_id)


def used(database: Database, key_id: str = "") -> dict[str, tuple[int, int, int]]:
    """Requests, and tokens read and made, by the name of the model."""
    with database.snapshot() as session:
        rows = session.scalars(select(tables.UsageRow).where(tables.UsageRow.key_id == key_id))
        return {row.model: (row.requests, row.prompt_tokens, row.completion_tokens) for row in rows}


def results_of(row: tables.EvaluationRow) -> EvaluationResults:
    assert (row.state, row.error) == ("succeeded", None)
    return EvaluationResults.model_validate(row.results)


def test_every_model_is_asked_every_row_and_compared_with_the_base(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str
) -> None:
    submit(database, adapter)
    # By row: the base is wrong about the first and right about the second; the adapter is right twice.
    engine.scripts = [says("3"), says("2"), says("4"), says("4")]
    row = run(runner, database)
    found = results_of(row)
    assert [one.graders[0].passed for one in found.models] == [1, 2]
    against = found.models[1].graders[0].against_baseline
    assert against is not None
    assert (against.wins, against.ties, against.losses) == (1, 1, 0)
    assert (row.rows, row.total, row.done, row.failed) == (2, 4, 4, 0)
    assert [one.adapter.id if one.adapter else None for one in engine.requests] == [None, adapter] * 2
    assert engine.requests[0].sampling.temperature == 0
    assert used(database) == {"owner/model": (2, 2 * READ, 2 * MADE), "helper": (2, 2 * READ, 2 * MADE)}


def test_rows_of_a_dataset_are_drawn_by_the_seed_and_stored(
    runner: EvaluationRunner, database: Database, store: ArtifactStore, tmp_path: Path, adapter: str
) -> None:
    rows = [{"prompt": f"Question {number}?", "completion": f"{number}"} for number in range(1, 8)]
    with database.transaction() as session:
        dataset = make_dataset(session, store, tmp_path, rows)
    submit(database, adapter, rows=None, dataset=dataset.id, limit=3, seed=1)
    row = run(runner, database)
    assert results_of(row).rows == 3
    with database.snapshot() as session:
        stored = session.scalars(select(tables.EvaluationItemRow).order_by(tables.EvaluationItemRow.number))
        items = [(one.line, one.item["reference"]) for one in stored]
    assert len(items) == 3
    assert all(reference == str(line) for line, reference in items)


def test_a_request_waits_while_training_has_the_gpu(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str
) -> None:
    submit(database, adapter)
    engine.scripts = [fails("unavailable", "gpu_taken", retry_after_seconds=0)] * 8
    assert results_of(run(runner, database)).models[0].errors == 0
    assert len(engine.requests) == 8 + 4


def test_a_row_that_the_engine_refuses_has_an_error_and_the_others_answers(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str
) -> None:
    submit(database, adapter)
    engine.scripts = [fails("invalid", "context_length_exceeded")]
    row = run(runner, database)
    found = results_of(row)
    assert (found.models[0].answers, found.models[0].errors, row.failed) == (1, 1, 1)


@pytest.mark.parametrize(("kind", "words"), [("invalid", "No row was answered"), ("not_found", "No.")])
def test_an_evaluation_without_any_answer_fails(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str, kind: str, words: str
) -> None:
    submit(database, adapter)
    engine.script = fails(kind, "model_missing")
    row = run(runner, database)
    assert row.state == "failed"
    assert words in (row.error or {})["message"]


def test_an_answer_that_breaks_off_is_asked_again_but_not_for_ever(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str
) -> None:
    submit(database, adapter, rows=[{"prompt": "?", "reference": "!"}])
    broken = fails("internal", "engine_error", retry_after_seconds=0)
    engine.scripts = [broken, says("!"), *[broken] * 5]
    found = results_of(run(runner, database))
    assert (found.models[0].graders[0].passed, found.models[1].errors) == (1, 1)


def count_done(database: Database, evaluation_id: str) -> int:
    with database.snapshot() as session:
        return records.get(session, evaluation_id).done


@pytest.fixture
def held(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str
) -> Iterator[threading.Thread]:
    """A run whose third answer does not arrive, and whose first two are stored."""
    evaluation_id = submit(database, adapter)
    engine.scripts = [says("2"), says("2"), [TokenDelta(text="4"), Act.HOLD]]
    lease = runner.claim()
    assert lease is not None
    thread = threading.Thread(target=runner.run, args=(lease,))
    thread.start()
    assert engine.is_holding.wait(60)
    wait_for(lambda: count_done(database, evaluation_id) == 2, "two stored answers", timeout_seconds=60)
    yield thread
    thread.join(60)
    assert not thread.is_alive()


def test_after_kill_9_only_what_is_missing_is_asked(
    held: threading.Thread, runner: EvaluationRunner, database: Database, engine: FakeEngine
) -> None:
    (child,) = find_children(EVALUATING_MODULE)
    child.kill()
    held.join(60)
    engine.requests.clear()
    row = run(runner, database)
    assert results_of(row).models[0].answers == 2
    assert (row.done, row.attempts) == (4, 2)
    assert [one.prompt for one in engine.requests] == ["What is 2 + 2?"] * 2


def test_a_cancelled_evaluation_ends_its_request_and_has_its_answers(
    held: threading.Thread, database: Database, engine: FakeEngine
) -> None:
    with database.transaction() as session:
        (row,) = session.scalars(select(tables.EvaluationRow))
        records.cancel(session, row.id)
    assert engine.lost_its_client.wait(30)
    held.join(60)
    with database.snapshot() as session:
        (row,) = session.scalars(select(tables.EvaluationRow))
        assert (row.state, row.done) == ("cancelled", 2)


def test_a_worker_that_stops_releases_the_evaluation(
    held: threading.Thread, database: Database, stop: threading.Event
) -> None:
    stop.set()
    held.join(60)
    with database.transaction() as session:
        (row,) = session.scalars(select(tables.EvaluationRow))
        assert (row.state, row.attempts, row.done) == ("queued", 0, 2)
        assert evaluation_queue.claim(session, lease_seconds=30, max_attempts=3) is not None


def test_an_answer_that_has_no_grade_yet_is_graded_and_not_asked_again(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str
) -> None:
    evaluation_id = submit(database, adapter, rows=[{"prompt": "?", "reference": "!"}])
    with database.transaction() as session:
        row = tables.EvaluationAnswerRow(evaluation_id=evaluation_id, number=0, model=0)
        row.answer = {"text": "!", "finish_reason": "stop"}
        session.add(row)
    found = results_of(run(runner, database))
    assert found.models[0].graders[0].passed == 1
    assert len(engine.requests) == 1


def test_perplexity_is_that_of_the_reference_under_each_model(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str
) -> None:
    perplexity = {"type": "perplexity", "name": "perplexity", "reference": "{{item.reference}}"}
    rows = [{"prompt": "What is 1 + 1?", "reference": "2"}]
    submit(database, adapter, rows=rows, graders=[perplexity], generate=False)
    likelihoods = [Likelihood(logprob=-math.log(8) * 2, tokens=2), Likelihood(logprob=-math.log(2), tokens=1)]
    engine.scripts = [[FINISHED.model_copy(update={"likelihood": one})] for one in likelihoods]
    found = results_of(run(runner, database))
    means = [one.graders[0].mean for one in found.models]
    assert [round(one.value, 6) for one in means if one] == [8.0, 2.0]
    against = found.models[1].graders[0].against_baseline
    assert against is not None
    assert against.wins == 1  # lower is better
    assert [(one.reference, one.reads_only) for one in engine.requests] == [("2", True)] * 2
    assert used(database) == {"owner/model": (1, READ, 0), "helper": (1, READ, 0)}


def test_a_model_of_this_server_grades(
    runner: EvaluationRunner, database: Database, engine: FakeEngine, adapter: str
) -> None:
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": adapter,
        "input": [{"role": "user", "content": "Grade {{sample.output_text}} for {{item.reference}}."}],
    }
    evaluation_id = submit(database, adapter, rows=[{"prompt": "?", "reference": "!"}], graders=[judge])
    with database.transaction() as session:
        records.get(session, evaluation_id).key_id = "key_1"
    verdicts = [says('{"steps": [], "result": 0.2}'), says('{"steps": [], "result": 0.9}')]
    engine.scripts = [says("a"), verdicts[0], says("b"), verdicts[1]]
    found = results_of(run(runner, database))
    assert [one.graders[0].passed for one in found.models] == [0, 1]
    asked = engine.requests[1]
    assert asked.messages is not None
    assert (asked.messages[0].content, asked.output_schema is not None) == ("Grade a for !.", True)
    # The adapter has one answer to make and two to grade.
    assert used(database, "key_1") == {
        "owner/model": (1, READ, MADE),
        "helper": (3, 3 * READ, 3 * MADE),
    }
