"""Evaluations in a real browser: asked for, followed, read row by row, deleted."""

from pathlib import Path

from playwright.sync_api import Page, expect
from sqlalchemy import select

from app.api.openai.evals.objects import EvalRunObject
from app.core.evaluations.answers import Answer, StoredGrade
from app.core.evaluations.queue import EvaluationLease, RecordedAnswer, evaluation_queue
from app.core.evaluations.results import read_graded, summarize
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.core.evaluations.evaluations import MODELS, make_evaluation
from tests.dashboard.browser import FAILED_REQUEST, Console, serious_faults
from tests.factories import make_adapter, make_dataset
from tests.fakes import ServerThread


def claim(database: Database) -> EvaluationLease:
    with database.transaction() as session:
        lease = evaluation_queue.claim(session, lease_seconds=300, max_attempts=3)
    assert lease is not None
    return lease


def record(database: Database, lease: EvaluationLease, number: int, model: int, text: str) -> None:
    passed = text.startswith("right")
    grade = StoredGrade(score=float(passed), passed=passed)
    answer = RecordedAnswer(number, model, Answer(text=text, finish_reason="stop"), [grade])
    with database.transaction() as session:
        evaluation_queue.record(session, lease, answers=[answer])


def assert_usable(page: Page) -> None:
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_an_adapter_is_evaluated_against_its_base_model(
    server: ServerThread,
    database: Database,
    settings: Settings,
    page: Page,
    console: Console,
    tmp_path: Path,
) -> None:
    console.allowed = [FAILED_REQUEST]
    with database.transaction() as session:
        make_dataset(session, ArtifactStore(settings.artifacts_url), tmp_path)
        make_adapter(session, base_model="owner/model")
    page.goto(f"{server.url}/#/adapters")
    page.get_by_role("link", name="Evaluate helper").click()
    expect(page.get_by_label("owner/model")).to_be_checked()
    expect(page.get_by_label("helper")).to_be_checked()
    page.get_by_label("Exact match").check()
    assert_usable(page)
    page.get_by_label("A model that grades").fill("nobody")
    page.get_by_role("button", name="Evaluate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("nobody")
    page.get_by_label("A model that grades").fill("")
    page.get_by_role("button", name="Evaluate", exact=True).click()
    expect(page.get_by_text("not chosen yet")).to_be_visible()
    with database.snapshot() as session:
        (row,) = session.scalars(select(tables.EvaluationRow))
    assert [model["label"] for model in row.spec["models"]] == ["owner/model", "helper"]
    assert [grader["name"] for grader in row.spec["graders"]] == ["rouge_l", "exact"]


def test_results_and_rows_appear_as_they_come_and_are_filtered(
    server: ServerThread, database: Database, page: Page
) -> None:
    with database.transaction() as session:
        made = make_evaluation(session, models=MODELS)
    lease = claim(database)
    record(database, lease, 0, 0, "wrong of the base")
    with database.transaction() as session:
        evaluation_queue.record(session, lease, waiting_for="Job job_1 has the GPU.")
    page.goto(f"{server.url}/#/evaluation/{made.id}")
    expect(page.get_by_text("It waits: Job job_1 has the GPU.")).to_be_visible()
    expect(page.get_by_text("1 of 4")).to_be_visible()
    record(database, lease, 0, 1, "right of the adapter")
    record(database, lease, 1, 0, "right twice")
    record(database, lease, 1, 1, "right twice")
    with database.transaction() as session:
        found = summarize(lease.spec, read_graded(session, lease.key))
        evaluation_queue.finish(session, lease, found.model_dump(mode="json"))
    results = page.get_by_role("table", name="Results")
    expect(results.get_by_role("row").filter(has_text="tuned")).to_contain_text("1 win, 1 tie, 0 losses")
    expect(page.get_by_text("the models differ on 1")).to_be_visible()
    expect(page.get_by_role("region", name="Row 2")).to_be_visible()
    assert_usable(page)
    page.get_by_label("Only where the models disagree").check()
    expect(page.get_by_role("region", name="Row 2")).to_have_count(0)
    expect(page.get_by_role("region", name="Row 1")).to_contain_text("right of the adapter")
    page.get_by_label("Answers that").select_option("lost")
    expect(page.get_by_text("No row is like that.")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it for good").click()
    expect(page.get_by_text("No evaluation yet")).to_be_visible()


def test_scores_are_seen_whatever_an_answers_length(
    server: ServerThread, database: Database, page: Page
) -> None:
    with database.transaction() as session:
        made = make_evaluation(session, models=MODELS)
        address = EvalRunObject.from_row(made, [], dashboard=f"{server.url}/").report_url
    lease = claim(database)
    record(database, lease, 0, 0, "wrong, line by line\n" * 80)
    record(database, lease, 0, 1, "right")
    page.goto(address)
    row = page.get_by_role("region", name="Row 1")
    for label, verdict in (("base", "failed"), ("tuned", "passed")):
        answer = row.get_by_role("region", name=f"Answer of {label}")
        score = answer.get_by_text(verdict, exact=True)
        expect(score).to_be_visible()
        outer, inner = answer.bounding_box(), score.bounding_box()
        assert outer is not None
        assert inner is not None
        assert inner["y"] + inner["height"] <= outer["y"] + 90


def test_the_list_shows_scores_and_cancels(server: ServerThread, database: Database, page: Page) -> None:
    with database.transaction() as session:
        make_evaluation(session, models=MODELS)
    page.goto(f"{server.url}/#/evaluations")
    row = page.get_by_role("row").filter(has_text="tuned")
    expect(row).to_contain_text("queued")
    row.get_by_role("button", name="Cancel").click()
    expect(row).to_contain_text("cancelled")
    assert_usable(page)
